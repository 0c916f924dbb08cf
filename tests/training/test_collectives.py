"""W workers equal one: the same loss, gradients and running statistics, whatever W."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raycluster.methods.base import TrainingData
from raycluster.methods.dxmc import DXMC, DXMCConfig
from raycluster.training.collectives import GlobalBatchNorm1d, all_reduce_sum, gather_rows, sum_gradients, world_size


def step(rank: int, world: int) -> dict[str, torch.Tensor]:
    """One training step of DXMC on this worker's share of a batch of 16; what it leaves behind."""
    generator = torch.Generator().manual_seed(0)
    images, counterparts = (torch.randn(40, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    data = TrainingData(torch.arange(40), images, counterparts)
    config = DXMCConfig(name="dxmc", instance_weight=1.0, instance_dim=8, temperature=0.5, instance_temperature=0.5)
    method = DXMC(config, dim=6, n_clusters=3, n_rows=40, seed=2).double()
    extras = method.prepare(data)
    method.train()
    share = method.forward_batch(data, extras, torch.arange(16)[rank::world], epoch=1)
    loss, _ = method.loss({name: gather_rows(value) for name, value in share.items()})
    loss.backward()
    sum_gradients(method)
    gradients = {f"gradient {name}": p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients, **method.state_dict()}


def worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(step(rank, world), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_workers_equal_one(world: int, tmp_path: Path) -> None:
    mp.start_processes(worker, (world, str(tmp_path)), nprocs=world, start_method="fork")
    alone = step(0, 1)
    for rank in range(world):
        together = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert together.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(together[name], value, rtol=1e-9, atol=1e-12, msg=f"{name} on worker {rank}")


def normalized(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Two training passes and one in evaluation mode through batch norm alone, with gradients and an unused layer."""
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 + 1
    for momentum in (0.1, None):
        layer = GlobalBatchNorm1d(5, momentum=momentum).double()
        module = torch.nn.ModuleDict({"norm": layer, "unused": torch.nn.Linear(2, 2).double()})
        share = x[rank::world].clone().requires_grad_()
        layer(share)
        outputs = gather_rows(layer(share))
        (outputs**3).sum().backward()
        sum_gradients(module)
        assert world == 1 or not module["unused"].weight.grad.any()
    evaluated = layer.eval()(x[:3])
    # In rank order: back to the order of the batch.
    order = torch.cat([torch.arange(12)[r::world] for r in range(world)]).argsort()
    total = all_reduce_sum(share.detach().sum(dim=0))
    return {
        "outputs": outputs.detach()[order],
        "evaluated": evaluated.detach(),
        "gradient": layer.weight.grad,
        "input gradient": gather_rows(share.grad)[order],
        "total": total,
        **layer.state_dict(),
    }


def norm_worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(normalized(rank, world), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_batch_norm_of_workers_is_torchs_own_on_the_whole_batch(world: int, tmp_path: Path) -> None:
    mp.start_processes(norm_worker, (world, str(tmp_path)), nprocs=world, start_method="fork")
    alone = normalized(0, 1)
    for rank in range(world):
        together = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in alone.items():
            torch.testing.assert_close(together[name], value, rtol=1e-9, atol=1e-12, msg=f"{name} on worker {rank}")


def test_without_a_group_everything_is_the_identity() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    assert world_size() == 1
    assert gather_rows(x) is x
    assert all_reduce_sum(x) is x
    layer = GlobalBatchNorm1d(3)
    torch.testing.assert_close(layer(x), torch.nn.BatchNorm1d(3)(x))
    layer(x).sum().backward()
    before = layer.bias.grad.clone()
    sum_gradients(layer)
    assert torch.equal(layer.bias.grad, before)
