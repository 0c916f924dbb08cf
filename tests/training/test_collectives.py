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
from raycluster.training.collectives import gather_rows, sum_gradients


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
