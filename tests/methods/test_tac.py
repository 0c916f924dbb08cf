"""Test TAC, with and without training, against recorded values of the authors' code and against plain sums."""

from __future__ import annotations

import math

import pytest
import torch
from golden import compare, start_from
from golden import load as golden
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.clustering.kmeans import kmeans
from raycluster.config import MethodConfig
from raycluster.errors import ConfigError
from raycluster.methods import registry
from raycluster.methods.base import TrainingData
from raycluster.methods.dxmc import DXMC, DXMCConfig
from raycluster.methods.tac import TAC, TACConfig, TrainingFreeTAC

NETS = ["tac_net_B8_C3", "tac_net_B64_C10", "dxmc_net_B8_C3", "dxmc_net_B64_C10"]


def authors_net(name: str) -> tuple[TAC, dict[str, Tensor]]:
    g = golden(name)
    clusters, temperature = len(g["param_cluster_head_image.3.bias"]), float(g["tau_cluster"])
    method: TAC
    if name.startswith("tac"):
        method = TAC(TACConfig(name="tac", temperature=temperature), 16, clusters, 64, seed=0)
    else:
        config = DXMCConfig(
            name="dxmc",
            temperature=temperature,
            instance_temperature=float(g["tau_instance"]),
            instance_weight=1.0,
            instance_dim=32,
        )
        method = DXMC(config, 16, clusters, 64, seed=0)
    start_from(method.double(), g)
    return method.train(), g


def inputs(g: dict[str, Tensor]) -> list[Tensor]:
    return [g[f"in_{name}"] for name in ("text", "image", "neigh_text", "neigh_image")]


@pytest.mark.parametrize("name", NETS)
def test_three_training_steps_are_the_authors(name: str) -> None:
    method, g = authors_net(name)
    optimizer, middle = method.optimizer(), "consistency" if name.startswith("tac") else "instance"
    for step in range(3):
        loss, terms = method.loss(method.outputs(*inputs(g)))
        found = torch.stack([terms[key] for key in ("cluster", middle, "entropy", "loss")])
        torch.testing.assert_close(found, g["loss_trace_3steps"][step], rtol=1e-9, atol=1e-12)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 0:
            # The bias before batch norm is left out: its gradient is 0, and Adam amplifies the rounding error.
            state = {key: value for key, value in method.state_dict().items() if not key.endswith(".0.bias")}
            state |= {key: value for key, value in method.state_dict().items() if key.startswith("instance")}
            assert compare(state, g, "after1_") == len(state) - 2  # all but the two counts of batches
    method.eval()
    for head, side in ((method.cluster_head_image, "image"), (method.cluster_head_text, "text")):
        torch.testing.assert_close(head(g[f"in_{side}"]).softmax(dim=1), g[f"eval_after3_probs_{side}"], rtol=1e-9, atol=1e-12)  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_outputs_and_gradients_of_the_first_step_are_the_authors(name: str) -> None:
    method, g = authors_net(name)
    outputs = method.outputs(*inputs(g))
    names = {"p": "probs_text", "q": "probs_image", "near_p": "probs_neigh_text", "near_q": "probs_neigh_image"}
    names |= {} if name.startswith("tac") else {"text": "out_text_ins", "image": "out_image_ins"}
    assert outputs.keys() == names.keys()
    for value in outputs.values():
        value.retain_grad()
    assert compare({names[key]: value for key, value in outputs.items()}, g, "train_") == len(names)
    method.loss(outputs)[0].backward()
    assert compare({names[key]: value.grad for key, value in outputs.items()}, g, "dtotal_d") == len(names)
    gradients = {key: parameter.grad for key, parameter in method.named_parameters()}
    assert compare(gradients, g, "grad_") == len(gradients) == (12 if name.startswith("tac") else 20)


def assignments(seed: int, rows: int = 6, clusters: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, clusters, generator=generator, dtype=torch.float64).softmax(dim=1)


def test_the_loss_is_the_plain_sum_of_its_terms() -> None:
    method = TAC(TACConfig(name="tac", temperature=0.7), 4, 3, 60, seed=0)
    o = {name: assignments(seed) for seed, name in enumerate(("p", "q", "near_p", "near_q"))}

    def contrast(a: Tensor, b: Tensor) -> float:
        columns = [column / column.norm() for column in [*a.T, *b.T]]
        total = 0.0
        for i, one in enumerate(columns):
            scores = [math.exp(float(one @ other) / 0.7) for other in columns]
            total -= math.log(scores[(i + 3) % 6] / (sum(scores) - scores[i]))
        return total / 6

    def entropy(p: Tensor) -> float:
        return -sum(float(x) * math.log(float(x)) for x in p.mean(dim=0))

    agreement = -sum(math.log(float(p @ q)) for p, q in zip(o["p"], o["q"], strict=True)) / 6
    expected = contrast(o["q"], o["near_p"]) + contrast(o["p"], o["near_q"]) + agreement
    expected -= 5 * (entropy(o["p"]) + entropy(o["q"]))
    assert float(method.loss(o)[0]) == pytest.approx(expected, rel=1e-12)


def test_paper_constants_are_the_published_ones() -> None:
    few, many = (TAC(TACConfig(name="tac", profile="paper"), 4, c, 4114, seed=0).constants for c in (37, 100))
    keys = ("temperature", "batch_size", "epochs", "neighbors", "learning_rate", "entropy_weight")
    assert [few[key] for key in keys] == [0.5, 512, 20, 50, 1e-3, 5.0]
    assert [many[key] for key in keys] == [5.0, 2048, 100, 50, 1e-3, 5.0]


def spread(n: int = 60) -> TrainingData:
    generator = torch.Generator().manual_seed(3)
    images, nouns = torch.randn(n, 8, generator=generator), normalize(torch.randn(20, 8, generator=generator), dim=1)
    paired = TAC.space(TACConfig(name="tac")).pair(images, nouns)
    return TrainingData(torch.arange(n), images.half(), paired.half(), nouns)


def test_without_training_it_is_k_means_on_images_and_counterparts_side_by_side() -> None:
    data = spread()
    method = registry.build(MethodConfig.model_validate({"name": "tac", "trained": False}), 8, 4, 60, seed=2)
    assert isinstance(method, TrainingFreeTAC)
    method.fit(data)
    assert data.counterparts is not None
    joined = torch.cat([normalize(data.images.float(), dim=1), normalize(data.counterparts.float(), dim=1)], dim=1)
    expected = kmeans((joined / 2**0.5).half(), 4, seed=2)
    assert torch.equal(method.predict(data.images).argmax(dim=1), expected.labels.long())
    torch.testing.assert_close(method.predict(data.images).sum(dim=1), torch.ones(60))


def test_without_training_a_new_image_is_paired_with_the_kept_nouns_of_the_model() -> None:
    data = spread()
    config = MethodConfig.model_validate({"name": "tac", "trained": False, "text_temperature": 0.02})
    method = registry.build(config, 8, 4, 60, seed=2)
    assert isinstance(method, TrainingFreeTAC)
    method.fit(data)
    state = {key: value.clone() for key, value in method.state_dict().items()}
    again = registry.restore("tac", method.constants, 8, 4, 60, state)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(9))
    assert torch.equal(method.predict(x), again.predict(x))
    weights = (normalize(x, dim=1) @ data.nouns.T / 0.02).softmax(dim=1)
    joined = torch.cat([normalize(x, dim=1), normalize(weights @ data.nouns, dim=1)], dim=1) / 2**0.5
    expected = (joined @ method.centers.T / 0.05).softmax(dim=1)
    torch.testing.assert_close(again.predict(x), expected)


def test_without_nouns_there_is_an_error() -> None:
    method = registry.build(MethodConfig.model_validate({"name": "tac", "trained": False}), 8, 4, 60, seed=2)
    assert isinstance(method, TrainingFreeTAC)
    with pytest.raises(ConfigError, match="needs nouns"):
        method.fit(TrainingData(torch.arange(9), torch.randn(9, 8)))
