"""A thin layer over Ray Train: run a loop on elastic workers, write checkpoints, and resume."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import Tensor

from raycluster.compute import work
from raycluster.compute.node_checks import checked
from raycluster.compute.resources import Resources
from raycluster.errors import RayclusterError
from raycluster.storage.location import Location
from raycluster.training import checkpoint
from raycluster.training.backend import DeviceConfig
from raycluster.training.loop import History

log = logging.getLogger(__name__)

RAY_TRAIN_SETTINGS = {
    # Ray Train gives workers a minute to start. They load torch first, which takes longer on a busy machine or from a network disk.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    # Ray Train notices a checkpoint or the end of a training only when it next polls the workers, by default every two seconds.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}
"""Environment variables that Ray Train passes on from this process to its controller and workers. Variables that are already set stay."""
TERMINAL_EPOCHS = 5
"""Number of epochs that a terminal shows; a log file shows all."""

ABORT_S = 30.0
"""Longest wait for Ray Train to end its workers, in seconds."""


def fit(
    loop: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    folder: Location,
    workers: int,
    cpus: float,
    resources: Resources,
    keep: int | None = None,
) -> tuple[dict[str, Tensor], Any]:
    """Run `loop(config)` on `workers` workers with `cpus` CPUs each; return state and record of the last checkpoint.

    `keep`: how many of the last checkpoints are kept; by default all.

    `config`: references from :func:`ray.put` inside a list reach the workers as references. `folder`: Ray Train's folder. Its name must
    hold the fingerprint, because under an old name Ray returns the result of a finished run, and resumes an unfinished run at its last
    checkpoint.
    """
    for name, value in RAY_TRAIN_SETTINGS.items():
        os.environ.setdefault(name, value)
    trainer = _Trainer(
        checked(loop, resources.common),
        train_loop_config=config,
        scaling_config=ScalingConfig(
            # Elastic: if nodes are lost, the training goes on with fewer workers, and the result is the same.
            num_workers=1 if workers == 1 else (1, workers),
            use_gpu=resources.use_gpu,
            resources_per_worker={**({"CPU": cpus} if cpus else {}), **({"GPU": 1} if resources.use_gpu else {})},
        ),
        torch_config=DeviceConfig(),
        run_config=RunConfig(
            name=folder.name,
            storage_path=folder.parent.path,
            storage_filesystem=folder.filesystem,
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=keep),
        ),
    )
    with work.ending(trainer.abort):
        result = trainer.fit()
    work.check()
    if result.checkpoint is None:
        raise RayclusterError(f"{folder.uri}: training ended without a checkpoint; delete the folder and run again")
    with result.checkpoint.as_directory() as path:
        return checkpoint.restore(Path(path))


class _Trainer(TorchTrainer):
    """Ray's trainer without its SIGINT handler, which would stay installed after the training and swallow later interrupts."""

    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller

    def abort(self) -> None:
        """End the training and its workers. Does nothing if the training has ended already."""
        controller, self._controller = self._controller, None
        if controller is None or not ray.is_initialized():
            return
        try:
            ray.get(controller.abort.remote(), timeout=ABORT_S)
        except ray.exceptions.RayActorError:
            return  # expected: the controller exits when it aborts
        except ray.exceptions.GetTimeoutError:
            ray.kill(controller)  # its workers end with it


def resumed(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], Any] | None:
    """Return state and record of the checkpoint to resume from, and restore the optimizer in place; None at the start of a training.

    Workers call this function.
    """
    if (last := ray.train.get_checkpoint()) is None:
        return None
    with last.as_directory() as path:
        return checkpoint.restore(Path(path), optimizer)


def report(
    metrics: Mapping[str, float], state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None, record: Any
) -> None:
    """Report to Ray Train. The report is a barrier, so every worker must call this function; the first worker writes the checkpoint.

    Raises on every worker what :func:`check_finite` raises.
    """
    check_finite(state, metrics)
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(dict(metrics))
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder), state, optimizer, record)
        ray.train.report(dict(metrics), checkpoint=Checkpoint.from_directory(folder))


def check_finite(state: Mapping[str, Tensor], metrics: Mapping[str, float]) -> None:
    """Raise :class:`RayclusterError` if weights are not finite.

    A step with a finite loss may still make such weights, and every retry would start from them.
    """
    if broken := [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise RayclusterError(
            f"training: {len(broken)} of {len(state)} tensors hold NaN or infinity ({broken[0]}, {dict(metrics)}); lower the learning "
            "rate (`method.learning_rate` or, in fine-tuning, `finetune.learning_rate`). Earlier checkpoints are kept"
        )


def log_history(stage: str, history: History) -> None:
    """Log a line for each epoch; in a terminal, for a few epochs only."""
    shown = min(TERMINAL_EPOCHS, len(history)) if sys.stderr.isatty() else len(history)
    for epoch in sorted({round(i) for i in np.linspace(0, len(history) - 1, shown)}):
        terms = "  ".join(f"{name} {value:.4f}" for name, value in history[epoch].items())
        log.info("%-9s epoch %d/%d  %s", stage, epoch + 1, len(history), terms)
