"""Neighbor searches that are spread over Ray tasks: one block of rows for each node, or for each GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import ray
import torch
from torch import Tensor

from raycluster.compute.resources import Resources, own_device
from raycluster.compute.tasks import map_tasks
from raycluster.methods.base import Method, TrainedMethod, TrainingData
from raycluster.training.loop import find_neighbors

Blocks = Callable[..., dict[str, Tensor]]
"""A search over one block: (rows, *shared arrays) → int32 [len(rows), k] for each name."""


def training_data(data: Mapping[str, ray.ObjectRef], device: str | torch.device) -> TrainingData:
    """Return the arrays that are referred to as tensors. On the CPU these are views of Ray's shared memory, on a GPU copies."""
    arrays = zip(data, ray.get(list(data.values())), strict=True)
    return TrainingData(**{name: as_tensor(array, device) for name, array in arrays})


def as_tensor(array: np.ndarray, device: str | torch.device) -> Tensor:
    """Return the array as a tensor; on the CPU without a copy."""
    with warnings.catch_warnings():
        # Shared memory is read-only; that is safe, because nothing writes to these tensors.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


def find_graphs(
    build: Callable[[], Method], n_rows: int, data: ray.ObjectRef, resources: Resources
) -> dict[str, np.ndarray]:
    """Return int32 [N, k] for each graph of the method that `build` makes.

    `data`: a reference to those of the fields of :class:`TrainingData`, as arrays.
    """

    def find(rows: range, arrays: Mapping[str, ray.ObjectRef]) -> dict[str, Tensor]:
        method = build()
        assert isinstance(method, TrainedMethod)
        return find_neighbors(method, training_data(arrays, own_device()), rows)

    return _in_blocks(find, n_rows, resources.heavy_tasks, resources, data)


def _in_blocks(
    find: Blocks, n_rows: int, count: int, resources: Resources, *shared: ray.ObjectRef
) -> dict[str, np.ndarray]:
    """Run `find` on `count` blocks of rows, and return the joined results."""
    bounds = np.linspace(0, n_rows, count + 1).astype(int).tolist()

    def task(block: tuple[int, int], *arrays: object) -> tuple[int, dict[str, np.ndarray]]:
        return block[0], {name: part.cpu().numpy() for name, part in find(range(*block), *arrays).items()}

    result: dict[str, np.ndarray] = {}
    tasks = map_tasks(task, pairwise(bounds), *shared, common=resources.common, demand=resources.heavy_task)
    for start, parts in tasks:
        for name, part in parts.items():
            whole = result.setdefault(name, np.empty((n_rows, part.shape[1]), np.int32))
            whole[start : start + len(part)] = part
    return result
