from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

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
    torch.testing.assert_close(
        method.eval().cluster_head_image(g["in_image"]).softmax(dim=1),
        g["eval_after3_probs_image"],
        rtol=1e-7,
        atol=1e-9,
    )


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
