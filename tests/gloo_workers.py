"""Run a function on real gloo workers, and collect what they return."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

Result = dict[str, Tensor]


def start(rank: int, world: int, folder: str, function: Callable[..., Result], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(function(rank, world, *arguments), f"{folder}/{rank}.pt")
    dist.barrier()
    # destroy_process_group is not called, because gloo sometimes aborts the process if another one has ended already.
    os._exit(0)


def on_workers(world: int, folder: Path, function: Callable[..., Result], *arguments: object) -> list[Result]:
    """What the function returns on each of `world` gloo workers."""
    mp.start_processes(start, (world, str(folder), function, arguments), nprocs=world, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def assert_equal(workers: list[Result], alone: Result, rtol: float, atol: float) -> None:
    for rank, together in enumerate(workers):
        assert together.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(together[name], value, rtol=rtol, atol=atol, msg=f"{name} on worker {rank}")
