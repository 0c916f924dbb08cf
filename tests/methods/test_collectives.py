"""Test that W workers equal one: they have the same loss, gradients and running statistics, whatever W is and however the rows divide."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gloo_workers import Result, assert_equal, on_workers
from torch.nn.functional import normalize

from raycluster.config import MethodConfig
from raycluster.methods import registry
from raycluster.methods.base import TrainedMethod, TrainingData
from raycluster.methods.collectives import (
    GlobalBatchNorm1d,
    all_reduce_sum,
    gather_rows,
    share_state,
    sum_gradients,
    world_size,
)
from raycluster.training.loop import find_neighbors, train

TRAINED = [
    {"name": "tac"},
    {"name": "dxmc", "instance_weight": 1.0, "instance_dim": 8},
    {"name": "sic", "relevant_nouns": 5, "center_nouns": 2},
    {"name": "seic"},
]


def groups(dtype: torch.dtype = torch.float64, n: int = 97, clusters: int = 4, spread: float = 1 / 3) -> TrainingData:
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(n) % clusters
    images, texts = (
        normalize(
            torch.randn(clusters, 8, generator=generator)[truth] + spread * torch.randn(n, 8, generator=generator)
        )
        for _ in range(2)
    )
    nouns = normalize(torch.randn(12, 8, generator=generator))
    return TrainingData(
        torch.arange(n) * 3, images.to(dtype), texts.to(dtype), nouns if dtype == torch.float16 else nouns.to(dtype)
    )


def built(constants: dict[str, object], n: int = 97) -> TrainedMethod:
    method = registry.build(MethodConfig.model_validate(constants), 8, 4, n, seed=2)
    assert isinstance(method, TrainedMethod)
    return method


def one_step(rank: int, world: int, constants: dict[str, object], rows: int) -> Result:
    """Loss, gradients and state after the first step on a batch of `rows` rows."""
    data, method = groups(), built(constants).double()
    neighbors = find_neighbors(method, data)
    if rank == 0:
        method.setup(data)
        method.start_epoch(data)
    share_state(method)
    method.train()
    share = method.forward_batch(data, neighbors, torch.arange(rows)[rank::world], epoch=1)
    outputs = {name: gather_rows(value, rows) for name, value in share.items()}
    loss, _ = method.loss(outputs)
    loss.backward()
    sum_gradients(method)
    method.after_step(outputs)
    gradients = {f"gradient {name}": p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients, **method.state_dict()}


@pytest.mark.parametrize("constants", TRAINED, ids=lambda constants: str(constants["name"]))
@pytest.mark.parametrize(("world", "rows"), [(2, 16), (4, 16), (4, 17), (4, 3)])
def test_a_step_of_workers_is_that_of_one(world: int, rows: int, constants: dict[str, object], tmp_path: Path) -> None:
    # 17 rows give unequal shares. With 3 rows one worker has none.
    workers = on_workers(world, tmp_path, one_step, constants, rows)
    assert_equal(workers, one_step(0, 1, constants, rows), rtol=1e-9, atol=1e-12)


def whole_training(rank: int, world: int, constants: dict[str, object]) -> Result:
    # The groups are far apart. With loose groups even a single process finds other borders if its number of threads changes.
    data, method = (
        groups(torch.float16, n=402, spread=0.1),
        built({**constants, "batch_size": 101, "epochs": 30}, n=402),
    )
    history = train(method, data, find_neighbors(method, data), rank=rank, world=world)
    losses = torch.tensor([epoch["loss"] for epoch in history])
    return {"losses": losses, "clusters": method.predict(data.images).argmax(dim=1)}


@pytest.mark.parametrize("constants", TRAINED, ids=lambda constants: str(constants["name"]))
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_models_trained_by_workers_are_that_of_one(world: int, constants: dict[str, object], tmp_path: Path) -> None:
    alone = whole_training(0, 1, constants)
    assert len(alone["clusters"].unique()) > 1
    for together in on_workers(world, tmp_path, whole_training, constants):
        torch.testing.assert_close(together["losses"], alone["losses"], rtol=1e-3, atol=1e-3)
        assert float((together["clusters"] == alone["clusters"]).float().mean()) >= 0.99


def normalized(rank: int, world: int, rows: int) -> Result:
    """Two training passes and one in evaluation mode through batch norm alone, with gradients and an unused layer."""
    x = torch.randn(rows, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 + 1
    for momentum in (0.1, None):
        layer = GlobalBatchNorm1d(5, momentum=momentum).double()
        module = torch.nn.ModuleDict({"norm": layer, "unused": torch.nn.Linear(2, 2).double()})
        share = x[rank::world].clone().requires_grad_()
        layer(share)
        outputs = gather_rows(layer(share), rows)
        (outputs**3).sum().backward()
        sum_gradients(module)
        assert world == 1 or not module["unused"].weight.grad.any()
    evaluated = layer.eval()(x[:3])
    # The rows come in the order of the ranks. This brings them back into the order of the batch.
    order = torch.cat([torch.arange(rows)[r::world] for r in range(world)]).argsort()
    total = all_reduce_sum(share.detach().sum(dim=0))
    return {
        "outputs": outputs.detach()[order],
        "evaluated": evaluated.detach(),
        "gradient": layer.weight.grad,
        "input gradient": gather_rows(share.grad, rows)[order],
        "total": total,
        **layer.state_dict(),
    }


@pytest.mark.parametrize(("world", "rows"), [(2, 12), (4, 12), (4, 13), (4, 3)])
def test_batch_norm_of_workers_is_torchs_own_on_the_whole_batch(world: int, rows: int, tmp_path: Path) -> None:
    assert_equal(on_workers(world, tmp_path, normalized, rows), normalized(0, 1, rows), rtol=1e-9, atol=1e-12)


def test_a_wrong_share_is_an_error(tmp_path: Path) -> None:
    def short(rank: int, world: int) -> Result:
        try:
            gather_rows(torch.zeros(3, 2), 9)
        except ValueError as error:
            return {"message": torch.tensor(list(str(error).encode()), dtype=torch.uint8)}
        return {}

    for rank, result in enumerate(on_workers(2, tmp_path, short)):
        message = bytes(result["message"].tolist()).decode()
        assert message == f"worker {rank} of 2 holds 3 rows of a batch of 9, not {5 - rank}"


def test_without_a_group_everything_is_the_identity() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    assert world_size() == 1
    assert gather_rows(x, 4) is x
    assert all_reduce_sum(x) is x
    layer = GlobalBatchNorm1d(3)
    torch.testing.assert_close(layer(x), torch.nn.BatchNorm1d(3)(x))
    layer(x).sum().backward()
    before = layer.bias.grad.clone()
    sum_gradients(layer)
    assert torch.equal(layer.bias.grad, before)
