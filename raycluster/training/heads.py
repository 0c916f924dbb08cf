"""Train a method's heads with Ray Train, or fit them in one task.

Any number of workers gives the same result as one worker. A training that was killed resumes at its last checkpoint.

Memory in bytes for N rows of d dimensions: each node keeps the rows in shared memory, 2·N·d for the images, as much for the counterparts
and 4·N·k for each graph of k neighbors, 2.2 GB for a million rows with d = 512 and two graphs with k = 33. Workers on CPUs read them there
and have only their share of a batch besides; each GPU gets a copy. The driver has one array of 2·N·d for itself while it reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from torch import Tensor

from raycluster.compute.resources import Resources, own_device
from raycluster.compute.tasks import one_task
from raycluster.config import MethodConfig
from raycluster.methods import registry
from raycluster.methods.base import FittedMethod, Method, TrainedMethod
from raycluster.methods.consensus import consensus_clusters
from raycluster.storage.location import Location
from raycluster.training import trainer
from raycluster.training.backend import worker_device
from raycluster.training.loop import History, train
from raycluster.training.neighbors import as_tensor, find_graphs, training_data

CHECKPOINT_STEPS = 500
"""Optimizer steps between two checkpoints, rounded down to whole epochs, but at least one epoch.

A checkpoint is a barrier that takes Ray Train seconds, so a training of a few hundred steps writes only the last one.
"""


@dataclass(frozen=True)
class HeadsJob:
    """What the workers need besides the data."""

    config: MethodConfig
    dim: int
    n_clusters: int
    n_rows: int
    seed: int
    checkpoint_steps: int = CHECKPOINT_STEPS
    """Optimizer steps between two checkpoints, rounded down to whole epochs, but at least one epoch."""

    def build(self) -> Method:
        """Return the method with fresh heads, the same on every worker."""
        return registry.build(self.config, self.dim, self.n_clusters, self.n_rows, self.seed)


def train_heads(
    job: HeadsJob, data: Mapping[str, ray.ObjectRef], folder: Location, resources: Resources
) -> tuple[Method, History]:
    """Train (or fit) the heads of one method.

    `data`: references from :func:`ray.put` to the fields of :class:`TrainingData` as arrays, embeddings in float16 as stored. Each node
    keeps one copy in shared memory.
    `folder`: Ray Train's folder. Its name must hold the fingerprint, because Ray returns the old result of a finished run of that name.
    Returns the trained method on the CPU and the means of each epoch. The history of a fitted method is one entry, its facts.
    """
    method, shared = job.build(), ray.put(dict(data))  # references alone: the arrays are not copied again
    if isinstance(method, TrainedMethod):
        state, history = _train(job, method, shared, folder, resources)
    else:
        state, history = _fit(job, shared, resources)
    method.load_state_dict(state)
    trainer.log_history("train", history)
    return method.eval(), history


def _fit(job: HeadsJob, data: ray.ObjectRef, resources: Resources) -> tuple[dict[str, Tensor], History]:
    """Fit the method in one task.

    Ray Train would add ten seconds for its own start, and a fit has no steps from which a training could resume.
    """

    def fit(arrays: Mapping[str, ray.ObjectRef]) -> tuple[dict[str, Tensor], dict[str, float]]:
        resources.use_heavy_threads()
        device = own_device()
        found = job.build().to(device)
        assert isinstance(found, FittedMethod)
        facts = found.fit(training_data(arrays, device))
        state = {name: value.cpu() for name, value in found.state_dict().items()}
        trainer.check_finite(state, facts)
        return state, facts

    state, facts = one_task(fit, resources, data)
    return state, [facts]


def _train(
    job: HeadsJob, method: TrainedMethod, shared: ray.ObjectRef, folder: Location, resources: Resources
) -> tuple[dict[str, Tensor], History]:
    workers = resources.train_workers
    cpus = resources.head_worker_cpus
    config = {
        "job": job,
        # References inside a list reach the workers as references. So each node, not each worker, holds one copy of the data.
        "data": [shared],
        "neighbors": [ray.put(find_graphs(job.build, job.n_rows, shared, resources) if method.graphs() else {})],
        "consensus": [ray.put(_find_consensus(job, shared, resources) if method.config.init == "consensus" else None)],
        "threads": max(1, int(cpus)),
    }
    return trainer.fit(_worker, config, folder, workers, cpus, resources)


def _find_consensus(job: HeadsJob, data: ray.ObjectRef, resources: Resources) -> np.ndarray:
    """Return the clusters of the method `consensus`, int64 [N], computed in one task."""

    def find(arrays: Mapping[str, ray.ObjectRef]) -> np.ndarray:
        resources.use_heavy_threads()
        rows = training_data(arrays, own_device())
        return consensus_clusters(rows, job.n_clusters, job.seed).cpu().numpy()

    return one_task(find, resources, data)


def _worker(config: dict[str, Any]) -> None:
    """Train the heads. Ray Train calls this function on every worker."""
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = worker_device()
    if device.type == "cpu":
        torch.set_num_threads(config["threads"])
    data = training_data(ray.get(config["data"][0]), device)
    method = config["job"].build().to(device)
    assert isinstance(method, TrainedMethod)
    neighbors = {name: as_tensor(array, device) for name, array in ray.get(config["neighbors"][0]).items()}
    if (clusters := ray.get(config["consensus"][0])) is not None:
        data = replace(data, consensus=as_tensor(clusters, device))
    optimizer, history = method.optimizer(), None
    if (last := trainer.resumed(optimizer)) is not None:
        method.load_state_dict(last[0])
        history = last[1]
    schedule = method.schedule()
    every = max(1, config["job"].checkpoint_steps // schedule.steps_per_epoch)

    def after_epoch(optimizer: torch.optim.Optimizer, history: History) -> None:
        if len(history) % every == 0 or len(history) == schedule.epochs:
            trainer.report(history[-1], method.state_dict(), optimizer, history)

    train(
        method, data, neighbors, optimizer=optimizer, history=history, rank=rank, world=world, after_epoch=after_epoch
    )
