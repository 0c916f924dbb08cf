"""Train a method's heads with Ray Train: any number of workers, the same result as one, resumed after a kill."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from safetensors.torch import load_file, save_file
from torch import Tensor

from raycluster.config import MethodConfig
from raycluster.distributed import Resources
from raycluster.errors import ConfigError, RayclusterError
from raycluster.methods import registry
from raycluster.methods.base import FittedMethod, Method, TrainedMethod, TrainingData
from raycluster.storage import Location
from raycluster.training.collectives import gather_rows, sum_gradients
from raycluster.training.counted import epoch_order

log = logging.getLogger(__name__)

CHECKPOINT_STEPS = 500
"""Optimizer steps between checkpoints. Each is a barrier that takes Ray Train seconds: a short training needs none."""


@dataclass(frozen=True)
class HeadsJob:
    """What the workers need besides the data."""

    config: MethodConfig
    dim: int
    n_clusters: int
    n_rows: int
    seed: int

    def build(self) -> Method:
        """The method with fresh heads, the same on every worker."""
        return registry.build(self.config, self.dim, self.n_clusters, self.n_rows, self.seed)


def train_heads(
    job: HeadsJob, data: Mapping[str, np.ndarray], folder: Location, resources: Resources
) -> tuple[Method, dict[str, float]]:
    """Train (or fit) the heads of one method.

    `data`: `row_ids` [N] int64, `images` [N, d] float16, optional `counterparts` [N, d] float16.
    `folder`: Ray Train's folder; its name must hold the fingerprint, for Ray returns the old result of a finished run.
    Returns the trained method on the CPU and the last epoch's metrics.
    """
    method = job.build()
    workers = 1 if isinstance(method, FittedMethod) else resources.train_workers
    if isinstance(method, TrainedMethod) and method.schedule().batch_size % workers:
        raise ConfigError(
            f"resources.train_workers: {workers} workers cannot share a batch of {method.schedule().batch_size} equally; "
            "choose a divisor, or another `method.batch_size`"
        )
    shared = ray.put(dict(data))
    extras = _prepare(job, shared, resources) if isinstance(method, TrainedMethod) else ray.put({})
    cpus = max(1, resources.node_cpus - 1) if workers == 1 and not resources.use_gpu else 1
    trainer = TorchTrainer(
        _worker,
        # References inside a list reach the workers as references: one copy of the data a node, not one a worker.
        train_loop_config={"job": job, "data": [shared], "extras": [extras], "threads": cpus},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=resources.use_gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if resources.use_gpu else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if resources.use_gpu else "gloo"),
        run_config=RunConfig(
            name=folder.name,
            storage_path=folder.parent.path,
            storage_filesystem=folder.filesystem,
            failure_config=FailureConfig(max_failures=2),
        ),
    )
    result = trainer.fit()
    if result.checkpoint is None:
        raise RayclusterError(f"{folder.uri}: training ended without a checkpoint; delete the folder and run again")
    _restore(method, result.checkpoint)
    return method.eval(), {
        key: float(value) for key, value in (result.metrics or {}).items() if isinstance(value, (int, float))
    }


def _prepare(job: HeadsJob, shared: ray.ObjectRef, resources: Resources) -> ray.ObjectRef:
    """What is computed once from all rows before training (neighbors), in a task of its own."""

    def prepare(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        method = job.build()
        assert isinstance(method, TrainedMethod)
        prepared = method.prepare(_training_data(arrays, resources.device))
        return {key: value.cpu().numpy() for key, value in prepared.items()}

    return ray.remote(**resources.heavy_task)(prepare).remote(shared)


def _training_data(arrays: Mapping[str, np.ndarray], device: str | torch.device) -> TrainingData:
    def tensor(name: str, dtype: torch.dtype) -> Tensor:
        # Copied: arrays in Ray's object store are read-only.
        return torch.from_numpy(np.array(arrays[name])).to(device, dtype)

    return TrainingData(
        row_ids=tensor("row_ids", torch.int64),
        images=tensor("images", torch.float32),
        counterparts=tensor("counterparts", torch.float32) if "counterparts" in arrays else None,
    )


def _worker(config: dict[str, Any]) -> None:
    """Runs on every worker."""
    job: HeadsJob = config["job"]
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(config["threads"])
    data = _training_data(ray.get(config["data"][0]), device)
    method = job.build().to(device)
    if isinstance(method, FittedMethod):
        _report(method, None, 0, method.fit(data))
    elif isinstance(method, TrainedMethod):
        extras = {
            key: torch.from_numpy(np.array(value)).to(device) for key, value in ray.get(config["extras"][0]).items()
        }
        _train(method, data, extras, job.seed)


def _train(method: TrainedMethod, data: TrainingData, extras: dict[str, Tensor], seed: int) -> None:
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    schedule, optimizer = method.schedule(), method.optimizer()
    every = max(1, CHECKPOINT_STEPS // schedule.steps_per_epoch)
    for epoch in range(_resume(method, optimizer), schedule.epochs):
        method.train()
        method.start_epoch(data, extras, epoch)
        order = epoch_order(len(data.row_ids), seed, epoch).to(data.row_ids.device)
        metrics: dict[str, float] = {}
        for step in range(schedule.steps_per_epoch):
            batch = order[step * schedule.batch_size : (step + 1) * schedule.batch_size]
            metrics = _step(method, optimizer, data, extras, batch[rank::world], epoch)
        if (epoch + 1) % every == 0 or epoch + 1 == schedule.epochs:
            _report(method, optimizer, epoch + 1, metrics)


def _step(
    method: TrainedMethod,
    optimizer: torch.optim.Optimizer,
    data: TrainingData,
    extras: dict[str, Tensor],
    rows: Tensor,
    epoch: int,
) -> dict[str, float]:
    optimizer.zero_grad(set_to_none=True)
    share = method.forward_batch(data, extras, rows, epoch)
    # The losses are statistics of the global batch: gather first, then every worker computes the same loss.
    loss, metrics = method.loss({name: gather_rows(value) for name, value in share.items()})
    if not torch.isfinite(loss):
        raise RayclusterError(
            f"training: the loss became {loss.item()} in epoch {epoch + 1}; lower `method.learning_rate`"
        )
    loss.backward()
    sum_gradients(method)
    optimizer.step()
    return metrics


def _report(method: Method, optimizer: torch.optim.Optimizer | None, epoch: int, metrics: Mapping[str, float]) -> None:
    """Report to Ray Train (a barrier: every rank calls it); rank 0 brings the checkpoint."""
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(dict(metrics))
        return
    tensors = {f"method.{key}": value.detach().cpu().contiguous() for key, value in method.state_dict().items()}
    if optimizer is not None:
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value.detach().cpu().contiguous() for slot, value in slots.items()}
    tensors["epoch"] = torch.tensor(epoch)
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, Path(folder) / "state.safetensors")
        ray.train.report(dict(metrics), checkpoint=Checkpoint.from_directory(folder))


def _resume(method: Method, optimizer: torch.optim.Optimizer) -> int:
    """Restore the last checkpoint, if there is one; returns the number of finished epochs."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    tensors = _restore(method, checkpoint)
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, slot = key.split(".", 2)
            state.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(tensors["epoch"])


def _restore(method: Method, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Load a checkpoint's heads into the method; returns all of its tensors."""
    with checkpoint.as_directory() as folder:
        tensors = load_file(Path(folder) / "state.safetensors")
    heads = {key.removeprefix("method."): value for key, value in tensors.items() if key.startswith("method.")}
    method.load_state_dict(heads)
    return tensors


def describe_schedule(method: Method) -> dict[str, int]:
    """Batch size, epochs and steps, for the log and the model's record; empty for methods without training."""
    return asdict(method.schedule()) if isinstance(method, TrainedMethod) else {}
