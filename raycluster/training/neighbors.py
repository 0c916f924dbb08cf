"""Neighbor searches spread over Ray tasks: a block of rows for each node, or for each GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import ray
import torch
from torch import Tensor

from raycluster.clustering.neighbors import nearest_neighbors
from raycluster.clustering.whitening import NeighborSearch
from raycluster.distributed import map_tasks
from raycluster.methods.base import Method, TrainedMethod, TrainingData
from raycluster.resources import Resources, own_device
from raycluster.training.loop import find_neighbors

Blocks = Callable[..., dict[str, Tensor]]
"""(rows, *shared arrays) → for each name int32 [len(rows), k]."""


def training_data(arrays: Mapping[str, np.ndarray], device: str | torch.device) -> TrainingData:
    """The arrays as tensors: on the CPU views of Ray's shared memory, elsewhere copies."""
    return TrainingData(**{name: as_tensor(array, device) for name, array in arrays.items()})


def as_tensor(array: np.ndarray, device: str | torch.device) -> Tensor:
    """The array as a tensor, on the CPU without a copy."""
    with warnings.catch_warnings():
        # Shared memory is read-only, and nothing here writes to it.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


def find_graphs(
    build: Callable[[], Method], n_rows: int, data: ray.ObjectRef, resources: Resources
) -> dict[str, np.ndarray]:
    """For each graph of the method that `build` makes int32 [N, k]. `data`: fields of :class:`TrainingData` as arrays."""

    def find(rows: range, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        method = build()
        assert isinstance(method, TrainedMethod)
        return find_neighbors(method, training_data(arrays, own_device()), rows)

    return _in_blocks(find, n_rows, resources.heavy_tasks, resources, data)


def spread_search(resources: Resources) -> NeighborSearch:
    """Search by cosine for a process that itself takes one of the places: on the others, where there are enough of them."""
    places = resources.heavy_tasks - 1

    def find(rows: range, x: np.ndarray, k: int) -> dict[str, Tensor]:
        return {"": nearest_neighbors(as_tensor(x, own_device()), k, rows=rows)}

    def search(x: Tensor, k: int) -> Tensor:
        # Alone, a score serves both of its rows: two others would only be as fast.
        if places <= 2:
            return nearest_neighbors(x, k)
        found = _in_blocks(find, len(x), places, resources, ray.put(x.cpu().numpy()), ray.put(k))
        return torch.from_numpy(found[""]).to(x.device)

    return search


def _in_blocks(
    find: Blocks, n_rows: int, count: int, resources: Resources, *shared: ray.ObjectRef
) -> dict[str, np.ndarray]:
    """Results of `find` for `count` blocks of rows, put together."""
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
