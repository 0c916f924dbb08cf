from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.methods.base import TrainingData
from raycluster.methods.dxmc import DXMC, DXMCConfig, published, scaled

GOLDEN = Path(__file__).parents[1] / "golden"


def golden_method(name: str) -> tuple[DXMC, dict[str, Tensor]]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        g = {key: torch.from_numpy(np.asarray(file[key])).double() for key in file.files}
    config = DXMCConfig(
        name="dxmc",
        temperature=float(g["tau_cluster"]),
        instance_temperature=float(g["tau_instance"]),
        instance_weight=1.0,
        instance_dim=32,
    )
    start = {key.removeprefix("param_"): value for key, value in g.items() if key.startswith("param_")}
    method = DXMC(config, dim=16, n_clusters=len(start["cluster_head_image.3.bias"]), n_rows=64, seed=0).double()
    missing, unexpected = method.load_state_dict(start, strict=False)
    assert not unexpected
    assert all("num_batches_tracked" in key for key in missing)
    return method, g


@pytest.mark.parametrize("name", ["dxmc_net_B8_C3", "dxmc_net_B64_C10"])
def test_three_training_steps_are_the_authors(name: str) -> None:
    method, g = golden_method(name)
    optimizer = method.optimizer()
    for step in range(3):
        method.train()
        outputs = method.outputs(g["in_text"], g["in_image"], g["in_neigh_text"], g["in_neigh_image"])
        loss, terms = method.loss(outputs)
        cluster, instance, entropy, total = g["loss_trace_3steps"][step].tolist()
        assert terms["cluster"] == pytest.approx(cluster, rel=1e-8)
        assert terms["instance"] == pytest.approx(instance, rel=1e-8)
        assert terms["entropy"] == pytest.approx(entropy, rel=1e-8)
        assert terms["loss"] == pytest.approx(total, rel=1e-8)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 0:
            for key, value in method.state_dict().items():
                # The bias before batch norm has gradient 0, of which Adam amplifies the rounding.
                if f"after1_{key}" in g and not key.endswith(".0.bias"):
                    torch.testing.assert_close(value.double(), g[f"after1_{key}"], rtol=1e-7, atol=1e-9, msg=key)
            statistics = {key for key in g if key.startswith("after1_") and "running" in key}
            assert len(statistics) == 4
            assert statistics <= {f"after1_{key}" for key in method.state_dict()}
    method.eval()
    for head, side in ((method.cluster_head_image, "image"), (method.cluster_head_text, "text")):
        torch.testing.assert_close(
            head(g[f"in_{side}"]).softmax(dim=1), g[f"eval_after3_probs_{side}"], rtol=1e-7, atol=1e-9
        )


@pytest.mark.parametrize("name", ["dxmc_net_B8_C3", "dxmc_net_B64_C10"])
def test_outputs_and_gradients_of_the_first_step_are_the_authors(name: str) -> None:
    method, g = golden_method(name)
    method.train()
    outputs = method.outputs(g["in_text"], g["in_image"], g["in_neigh_text"], g["in_neigh_image"])
    names = {"p": "text", "q": "image", "near_p": "neigh_text", "near_q": "neigh_image"}
    expected = {key: g[f"train_probs_{name}"] for key, name in names.items()}
    expected |= {"text": g["train_out_text_ins"], "image": g["train_out_image_ins"]}
    assert outputs.keys() == expected.keys()
    for key, value in outputs.items():
        value.retain_grad()
        torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-12, msg=key)
    method.loss(outputs)[0].backward()
    gradients = {key: g[f"dtotal_dprobs_{name}"] for key, name in names.items()}
    gradients |= {"text": g["dtotal_dout_text_ins"], "image": g["dtotal_dout_image_ins"]}
    for key, gradient in gradients.items():
        torch.testing.assert_close(outputs[key].grad, gradient, rtol=1e-9, atol=1e-12, msg=key)
    checked = 0
    for key, parameter in method.named_parameters():
        torch.testing.assert_close(parameter.grad, g[f"grad_{key}"], rtol=1e-9, atol=1e-12, msg=key)
        checked += 1
    assert checked == 20


def data(n: int = 60, d: int = 8) -> TrainingData:
    generator = torch.Generator().manual_seed(3)
    images, counterparts = torch.randn(n, d, generator=generator), torch.randn(n, d, generator=generator)
    return TrainingData(torch.arange(n) * 7, images, counterparts)


def test_instance_heads_cannot_change_the_clusters() -> None:
    batch = torch.arange(60)
    methods = [DXMC(DXMCConfig(name="dxmc", instance_weight=w), 8, 4, 60, seed=1) for w in (0.0, 1.0)]
    for method in methods:
        extras, optimizer = method.prepare(data()), method.optimizer()
        for epoch in range(3):
            method.train()
            loss, _ = method.loss(method.forward_batch(data(), extras, batch, epoch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    without, with_heads = (method.predict(data().images) for method in methods)
    assert torch.equal(without, with_heads)


def test_outputs_of_a_row_do_not_depend_on_who_computes_it() -> None:
    method = DXMC(DXMCConfig(name="dxmc"), 8, 4, 60, seed=1).eval()
    extras = method.prepare(data())
    rows = torch.arange(60)
    whole = method.forward_batch(data(), extras, rows, epoch=5)
    shares = [method.forward_batch(data(), extras, rows[rank::3], epoch=5) for rank in range(3)]
    for name, value in whole.items():
        for rank in range(3):
            torch.testing.assert_close(value[rank::3], shares[rank][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_clusters", [10, 100, 1000])
def test_paper_constants_are_the_published_ones(n_clusters: int) -> None:
    constants = published(n_rows=4114, n_clusters=n_clusters)
    expected = (0.5, 0.05, 512, 20) if n_clusters < 100 else (5.0, 0.5, 2048, 100)
    keys = ("temperature", "instance_temperature", "batch_size", "epochs")
    assert tuple(constants[key] for key in keys) == expected
    assert published(10**6, 1000)["batch_size"] == 8192


@pytest.mark.parametrize("n_rows", [40, 300, 4114, 50_000, 1_000_000])
@pytest.mark.parametrize("n_clusters", [2, 10, 100, 1000])
def test_scaled_constants_fit_any_size(n_rows: int, n_clusters: int) -> None:
    method = DXMC(DXMCConfig(name="dxmc"), 8, n_clusters, n_rows, seed=0)
    schedule = method.schedule()
    assert 1 <= schedule.batch_size <= n_rows
    assert schedule.steps_per_epoch * schedule.epochs >= 400
    assert schedule.steps_per_epoch * schedule.epochs <= max(800, 5 * n_rows)
    assert 3 <= scaled(n_rows, n_clusters)["neighbors"] <= 50
    given = DXMC(DXMCConfig(name="dxmc", epochs=3, profile="paper"), 8, n_clusters, n_rows, seed=0)
    assert given.constants["epochs"] == 3


@torch.no_grad()
def test_an_outputs_neighbor_is_one_of_the_rows_neighbors_in_that_space() -> None:
    method, rows = DXMC(DXMCConfig(name="dxmc", neighbors=4), 8, 4, 60, seed=1).double().eval(), torch.arange(60)
    images, counterparts = data().images.double(), data().counterparts.double()
    d = TrainingData(data().row_ids, images, counterparts)
    extras = method.prepare(d)
    heads = {
        "near_p": (method.cluster_head_text, counterparts, extras["text_neighbors"]),
        "near_q": (method.cluster_head_image, images, extras["image_neighbors"]),
    }
    drawn: dict[str, list[list[int]]] = {key: [] for key in heads}
    for epoch in range(12):
        outputs = method.forward_batch(d, extras, rows, epoch)
        for key, (head, embeddings, neighbors) in heads.items():
            of_neighbors = head(normalize(embeddings, dim=1)).softmax(dim=1)[neighbors.long()]
            rank = (of_neighbors - outputs[key].unsqueeze(1)).abs().amax(dim=2).min(dim=1)
            assert float(rank.values.max()) < 1e-12
            drawn[key].append(rank.indices.tolist())
    # All four ranks are drawn, in every epoch anew, and in one space apart from the other.
    for ranks in drawn.values():
        assert {rank for epoch in ranks for rank in epoch} == {0, 1, 2, 3}
        assert ranks[0] != ranks[1]
    assert drawn["near_p"] != drawn["near_q"]


def test_the_neighbors_are_found_on_normalized_rows_in_their_own_space() -> None:
    d, method = data(), DXMC(DXMCConfig(name="dxmc", neighbors=5), 8, 4, 60, seed=1)
    extras = method.prepare(d)
    for key, rows in (("image_neighbors", d.images), ("text_neighbors", d.counterparts)):
        cosine = normalize(rows, dim=1) @ normalize(rows, dim=1).T
        cosine.fill_diagonal_(-2)
        assert torch.equal(extras[key].long(), cosine.topk(5, dim=1).indices)


def test_prediction_is_the_image_head_on_normalized_rows_of_any_scale() -> None:
    method = DXMC(DXMCConfig(name="dxmc"), 8, 4, 60, seed=1)
    x = data().images
    expected = method.eval().cluster_head_image(normalize(x, dim=1)).softmax(dim=1)
    torch.testing.assert_close(method.train().predict(7 * x.half()), expected, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(method.predict(x), expected)
    assert not method.predict(x).requires_grad


def test_building_follows_the_seed_and_leaves_the_global_state_alone() -> None:
    before = torch.random.get_rng_state()
    one, two, other = (DXMC(DXMCConfig(name="dxmc"), 8, 4, 60, seed=s).state_dict() for s in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["cluster_head_image.0.weight"], other["cluster_head_image.0.weight"])
    assert not torch.equal(one["cluster_head_image.0.weight"], one["cluster_head_text.0.weight"])


def test_given_constants_win_over_the_profiles() -> None:
    given = {"temperature": 0.7, "neighbors": 9, "batch_size": 32, "instance_weight": 0.5}
    for profile in ("default", "paper"):
        constants = DXMC(DXMCConfig(name="dxmc", profile=profile, **given), 8, 4, 600, seed=0).constants
        assert {key: constants[key] for key in given} == given
    assert DXMC(DXMCConfig(name="dxmc", profile="paper"), 8, 4, 600, seed=0).constants == {
        "name": "dxmc",
        "profile": "paper",
        "train_sample": 1_000_000,
        "temperature": 0.5,
        "instance_temperature": 0.05,
        "instance_weight": 1.0,
        "entropy_weight": 5.0,
        "instance_dim": 1024,
        "neighbors": 50,
        "learning_rate": 1e-3,
        "batch_size": 512,
        "epochs": 20,
    }


def test_the_optimizer_is_the_authors() -> None:
    optimizer = DXMC(DXMCConfig(name="dxmc"), 8, 4, 60, seed=0).optimizer()
    assert isinstance(optimizer, torch.optim.Adam)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"], group["eps"]) == (1e-3, (0.9, 0.99), 0, 1e-8)


def test_training_separates_groups_that_both_modalities_show() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(3).repeat_interleave(40)
    images, counterparts = (
        torch.randn(3, 8, generator=generator)[truth] + 0.3 * torch.randn(120, 8, generator=generator) for _ in range(2)
    )
    rows = TrainingData(torch.arange(120), images, counterparts)
    method = DXMC(DXMCConfig(name="dxmc", batch_size=60), 8, 3, 120, seed=0)
    extras, optimizer = method.prepare(rows), method.optimizer()
    for step in range(60):
        method.train()
        batch = torch.randperm(120, generator=generator)[:60]
        loss, _ = method.loss(method.forward_batch(rows, extras, batch, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = method.predict(images).argmax(dim=1)
    assert len({int(found[truth == group].mode().values) for group in range(3)}) == 3
    assert all(
        (found[truth == group] == found[truth == group].mode().values).float().mean() > 0.9 for group in range(3)
    )
