"""Test SEIC against recorded values of the authors' code and against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from golden import compare, start_from
from golden import load as golden
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from raycluster.clustering.kmeans import SAMPLE_ROWS_A_CENTER
from raycluster.methods.base import TrainingData
from raycluster.methods.losses.info_nce import info_nce
from raycluster.methods.seic import (
    SEIC,
    SEICConfig,
    SEICSpace,
    balance,
    balance_weights,
    candidates,
    updated_history,
    weighted_centers,
    weighted_nouns,
)
from raycluster.training.loop import train

OUTPUTS = ("z_image", "z_text", "logits_image", "logits_text")


def authors(name: str) -> tuple[SEIC, dict[str, Tensor]]:
    g = golden(name)
    clusters = g["logits_image"].shape[1]
    method = SEIC(SEICConfig(name="seic", profile="paper"), 16, clusters, 64, seed=0).double()
    if "logit_scale" in g:
        state = {"history": g["history"], "instance_logit_scale": g["logit_scale"]}
        method.load_state_dict({**method.state_dict(), **state})
    return method, g


@pytest.mark.parametrize("name", ["seic_losses_B8_C3", "seic_losses_B64_C10"])
def test_losses_and_gradients_are_the_authors(name: str) -> None:
    method, g = authors(name)
    outputs = {key: g[key].clone().requires_grad_() for key in OUTPUTS}
    loss, terms = method.loss(outputs)
    loss.backward()
    assert compare({"total": terms.pop("loss"), **terms}, g, "") == 5
    assert compare({key: value.grad for key, value in outputs.items()}, g, "dtotal_d") == 4
    assert compare({"logit_scale": method.instance_logit_scale.grad}, g, "dtotal_d") == 1
    assert compare({"balance_weights": balance_weights(g["history"], 0.01, 5.0)}, g, "") == 1
    for side in ("image", "text"):
        centers, valid = weighted_centers(g[f"logits_{side}"].softmax(dim=1), g[f"z_{side}"])
        assert compare({f"centers_{side}": centers}, g, "") == 1
        assert torch.equal(valid, g[f"centers_{side}_valid"])


@pytest.mark.parametrize("name", ["seic_losses_B8_C3", "seic_losses_B64_C10"])
def test_an_empty_cluster_and_a_capped_scale_are_the_authors(name: str) -> None:
    method, g = authors(name)
    outputs = {**{key: g[key] for key in OUTPUTS}, "logits_image": g["logits_image_emptycluster"]}
    terms = method.loss(outputs)[1]
    assert compare({key: terms[key[:-13]] for key in ("center_emptycluster", "balance_emptycluster")}, g, "") == 2
    torch.nn.init.constant_(method.instance_logit_scale, 6.0)
    assert compare({"scale_above_cap_instance": method.loss(outputs)[1]["instance"]}, g, "") == 1


@pytest.mark.parametrize("name", ["seic_net_B8_C3", "seic_net_B64_C10"])
def test_three_training_steps_are_the_authors(name: str) -> None:
    method, g = authors(name)
    start_from(method, g)
    method.history.fill_(1 / len(method.history))
    optimizer = method.optimizer()
    for step in range(3):
        outputs = method.outputs(g["in_image"], g["in_text"])
        for value in outputs.values():
            value.retain_grad()
        loss, terms = method.loss(outputs)
        found = torch.stack([terms[key] for key in ("instance", "assignment", "center", "balance", "loss")])
        torch.testing.assert_close(found, g["loss_trace_3steps"][step], rtol=1e-9, atol=1e-12)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert compare(outputs, g, "") == 4
            assert compare({key: outputs[key].grad for key in ("logits_image", "logits_text")}, g, "dtotal_d") == 2
            assert compare({key: p.grad for key, p in method.named_parameters()}, g, "grad_") == 9
        optimizer.step()
        method.after_step(outputs)
        if step == 0:
            assert compare(method.state_dict(), g, "after1_") == 9
    assert compare({"history_after3": method.history}, g, "") == 1


def test_the_history_is_the_authors() -> None:
    g = golden("seic_history_3steps")
    history = g["history0"]
    for step in range(3):
        history = updated_history(history, g["logits"][step], float(g["momentum"]))
        torch.testing.assert_close(history, g[f"history{step + 1}"], rtol=1e-9, atol=0)


def test_candidates_and_counterparts_are_the_authors() -> None:
    g = golden("seic_text")
    kept = candidates(g["centers"], g["nouns"], int(g["k1"]))
    assert torch.equal(kept, g["candidate_indices"])
    found = weighted_nouns(g["images"], g["nouns"][kept], int(g["k2"]), float(g["tau_w"]))
    torch.testing.assert_close(found, g["text_features"], rtol=1e-5, atol=1e-6)
    top = (g["images"] @ g["nouns"][kept].T).topk(int(g["k2"]), dim=1)
    assert torch.equal(top.indices, g["topk_indices_into_candidates"])


def test_the_space_does_both_in_pieces_too(monkeypatch: pytest.MonkeyPatch) -> None:
    g = {key: value.float() if value.is_floating_point() else value for key, value in golden("seic_text").items()}
    space = SEICSpace(center_nouns=12, image_nouns=8, temperature=0.05)
    kept = g["nouns"][space.select(g["images"], g["nouns"], 4, seed=0)]
    whole = space.pair(g["images"].half(), kept)
    monkeypatch.setattr("raycluster.semantics.pairing.CHUNK_BYTES", 4 * len(kept) * 7)
    torch.testing.assert_close(space.pair(g["images"].half(), kept), whole)
    few = space.pair(g["images"], kept[:3])  # fewer nouns than an image takes
    torch.testing.assert_close(few.norm(dim=1), torch.ones(40))


def test_info_nce_is_the_plain_double_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    total = 0.0
    for one, two in ((a, b), (b, a)):
        for i in range(5):
            scores = [math.exp(float(one[i] @ two[j] / one[i].norm() / two[j].norm()) / 0.3) for j in range(5)]
            total -= math.log(scores[i] / sum(scores)) / 10
    assert float(info_nce(a, b, 0.3)) == pytest.approx(total, rel=1e-12)
    assert float(info_nce(a[:0], b[:0], 0.3)) == 0.0
    assert float(info_nce(a[:1], b[:1], 0.3)) == pytest.approx(0.0, abs=1e-12)


def test_the_balance_is_the_plain_weighted_sum() -> None:
    p = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(dim=1)
    history = torch.tensor([0.7, 0.295, 0.005], dtype=torch.float64)
    floored = [max(float(h), 0.01) for h in history]
    raw = [min(1 / 3 / (h / sum(floored)), 5.0) for h in floored]
    weights = [w / (sum(raw) / 3) for w in raw]
    expected = sum(w * float(x) * math.log(float(x)) for w, x in zip(weights, p.mean(dim=0), strict=True))
    assert float(balance(p, balance_weights(history, 0.01, 5.0))) == pytest.approx(expected, rel=1e-12)


def test_centers_are_the_plain_sums_over_assigned_rows() -> None:
    generator = torch.Generator().manual_seed(4)
    p, z = torch.randn(7, 3, generator=generator).softmax(dim=1), torch.randn(7, 2, generator=generator)
    centers, _ = weighted_centers(p, z)
    for k in range(3):
        expected = sum((p[i, k] * z[i] for i in range(7) if int(p[i].argmax()) == k), torch.zeros(2))
        torch.testing.assert_close(centers[k], expected)


def test_paper_constants_and_the_floor_for_many_clusters() -> None:
    paper = SEIC(SEICConfig(name="seic", profile="paper"), 4, 200, 4114, 0).constants
    keys = ("learning_rate", "batch_size", "epochs", "history_floor", "center_nouns", "image_nouns")
    assert [paper[key] for key in keys] == [5e-3, 1024, 200, 0.01, 200, 50]
    assert SEIC(SEICConfig(name="seic"), 4, 200, 4114, 0).constants["history_floor"] == 0.1 / 200


@pytest.mark.long
def test_training_finds_plain_groups_and_predicts_by_the_image_side() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(3).repeat_interleave(50)
    images, texts = (
        normalize(torch.randn(3, 8, generator=generator)[truth] + 0.2 * torch.randn(150, 8, generator=generator), dim=1)
        for _ in range(2)
    )
    method = SEIC(SEICConfig(name="seic"), 8, 3, 150, seed=0)
    history = train(method, TrainingData(torch.arange(150), images.half(), texts.half()), {})
    assert set(history[0]) == {"loss", "instance", "assignment", "center", "balance"}
    found = method.predict(images)
    expected = method.outputs(images, texts)["logits_image"].softmax(dim=1)
    torch.testing.assert_close(found, expected)
    assert len(torch.stack([found.argmax(dim=1), truth]).unique(dim=1).T) == 3
    assert float(cross_entropy(found, found.argmax(dim=1))) > 0


def test_the_start_looks_at_a_sample_that_the_seed_decides() -> None:
    rows = SAMPLE_ROWS_A_CENTER * 2 + 900
    generator = torch.Generator().manual_seed(4)
    images, texts = (normalize(torch.randn(rows, 6, generator=generator), dim=1).half() for _ in range(2))
    data = TrainingData(torch.arange(rows), images, texts)
    some = torch.tensor([3, 700, rows - 1])
    assert torch.equal(data.side_by_side(some), data.side_by_side()[some])
    starts = []
    for seed in (1, 1, 2):
        method = SEIC(SEICConfig(name="seic"), 6, 2, rows, seed)
        method.setup(data)
        starts.append(method.state_dict()["image_clustering.weight"])
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
