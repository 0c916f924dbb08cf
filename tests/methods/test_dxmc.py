"""Test DXMC: its constants, its outputs, the neighbors that it draws, and its training."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from raycluster.methods.base import TrainingData
from raycluster.methods.dxmc import DXMC, DXMCConfig
from raycluster.training.loop import find_neighbors


def data(n: int = 60, d: int = 8) -> TrainingData:
    generator = torch.Generator().manual_seed(3)
    images, counterparts = torch.randn(n, d, generator=generator), torch.randn(n, d, generator=generator)
    return TrainingData(torch.arange(n) * 7, images, counterparts)


def test_instance_heads_cannot_change_the_clusters() -> None:
    batch = torch.arange(60)
    methods = [DXMC(DXMCConfig(name="dxmc", instance_weight=w), 8, 4, 60, seed=1) for w in (0.0, 1.0)]
    for method in methods:
        extras, optimizer = find_neighbors(method, data()), method.optimizer()
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
    extras = find_neighbors(method, data())
    rows = torch.arange(60)
    whole = method.forward_batch(data(), extras, rows, epoch=5)
    shares = [method.forward_batch(data(), extras, rows[rank::3], epoch=5) for rank in range(3)]
    for name, value in whole.items():
        for rank in range(3):
            torch.testing.assert_close(value[rank::3], shares[rank][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_clusters", [10, 100, 1000])
def test_paper_constants_are_the_published_ones(n_clusters: int) -> None:
    constants = DXMC.published(n_rows=4114, n_clusters=n_clusters)
    expected = (0.5, 0.05, 512, 20) if n_clusters < 100 else (5.0, 0.5, 2048, 100)
    keys = ("temperature", "instance_temperature", "batch_size", "epochs")
    assert tuple(constants[key] for key in keys) == expected
    assert DXMC.published(10**6, 1000)["batch_size"] == 8192


@pytest.mark.parametrize("n_rows", [40, 300, 4114, 50_000, 1_000_000])
@pytest.mark.parametrize("n_clusters", [2, 10, 100, 1000])
def test_scaled_constants_fit_any_size(n_rows: int, n_clusters: int) -> None:
    method = DXMC(DXMCConfig(name="dxmc"), 8, n_clusters, n_rows, seed=0)
    schedule = method.schedule()
    assert 1 <= schedule.batch_size <= n_rows
    assert schedule.steps_per_epoch * schedule.epochs >= 400
    assert schedule.steps_per_epoch * schedule.epochs <= max(800, 5 * n_rows)
    assert 3 <= DXMC.scaled(n_rows, n_clusters)["neighbors"] <= 50
    given = DXMC(DXMCConfig(name="dxmc", epochs=3, profile="paper"), 8, n_clusters, n_rows, seed=0)
    assert given.constants["epochs"] == 3


@torch.no_grad()
def test_an_outputs_neighbor_is_one_of_the_rows_neighbors_in_that_space() -> None:
    method, rows = DXMC(DXMCConfig(name="dxmc", neighbors=4), 8, 4, 60, seed=1).double().eval(), torch.arange(60)
    images, counterparts = data().images.double(), data().counterparts.double()
    d = TrainingData(data().row_ids, images, counterparts)
    extras = find_neighbors(method, d)
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
    # All four ranks are drawn, anew in every epoch and separately in the two spaces.
    for ranks in drawn.values():
        assert {rank for epoch in ranks for rank in epoch} == {0, 1, 2, 3}
        assert ranks[0] != ranks[1]
    assert drawn["near_p"] != drawn["near_q"]


def test_the_neighbors_are_found_on_normalized_rows_in_their_own_space() -> None:
    d, method = data(), DXMC(DXMCConfig(name="dxmc", neighbors=5), 8, 4, 60, seed=1)
    extras = find_neighbors(method, d)
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
        "images_per_center": 300,
        "centers_per_cluster": 3,
        "nouns_per_center": 5,
        "text_temperature": 0.005,
        "temperature": 0.5,
        "instance_temperature": 0.05,
        "instance_weight": 1.0,
        "entropy_weight": 5.0,
        "weight_std": 0.02,
        "betas": [0.9, 0.99],
        "instance_dim": 1024,
        "neighbors": 50,
        "learning_rate": 1e-3,
        "batch_size": 512,
        "epochs": 20,
        "init": "own",
        "consensus_weight": 5.0,
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
    extras, optimizer = find_neighbors(method, rows), method.optimizer()
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
