"""Fine-tune the encoder with Ray Train.

Any number of workers gives the same result as one worker. A training that was killed resumes at its last checkpoint.
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import ray.train
import torch
from torch import Tensor

from raycluster.compute.resources import Resources
from raycluster.config import FinetuneConfig
from raycluster.encoder.clip import ClipEncoder
from raycluster.errors import ConfigError
from raycluster.finetuning.lora import merge
from raycluster.finetuning.pixels import PixelJob, batches
from raycluster.finetuning.self_enhancement import Progress, SelfEnhancement, on_device, train
from raycluster.methods.base import Method
from raycluster.methods.collectives import agreed
from raycluster.storage.location import Location
from raycluster.training import trainer
from raycluster.training.backend import worker_device
from raycluster.training.loop import History


@dataclass(frozen=True)
class FinetuneJob:
    """What the workers need besides the rows and the heads."""

    config: FinetuneConfig
    pixels: PixelJob
    sizes: Tensor
    """[C] mean probability of each cluster before tuning, to which pseudo-labels are aligned."""

    @property
    def steps(self) -> int:
        """Number of optimizer steps of the whole training."""
        return self.config.epochs * self.pixels.steps_per_epoch

    def build(self, method: Method, device: str) -> tuple[SelfEnhancement, ClipEncoder]:
        """Return the model with a fresh adaptation, the same on every worker, and the encoder.

        The model adapts the encoder's vision tower in place.
        """
        # Weights stay in full precision; on a GPU the forward pass is bf16.
        # Load on the CPU: a GPU would draw other random numbers, and the text tower is not needed there.
        encoder = ClipEncoder.load(replace(self.pixels.spec, precision="fp32"), "cpu")
        tower = encoder.model.visual
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.pixels.seed)
            model = SelfEnhancement(
                tower,
                copy.deepcopy(method),
                encoder.normalized,
                self.config.rank,
                self.config.momentum,
                self.sizes if self.config.alignment else None,
            )
        if self.config.gradient_checkpointing:
            if not hasattr(tower, "set_grad_checkpointing"):
                raise ConfigError(
                    f"finetune.gradient_checkpointing: the vision tower {type(tower).__name__} does not support it; set it to false"
                )
            tower.set_grad_checkpointing()
        return model.to(device), encoder

    def optimizer(self, model: SelfEnhancement) -> torch.optim.Optimizer:
        """Return AdamW over the trainable parameters."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=self.config.learning_rate, weight_decay=0.0)


@dataclass(frozen=True)
class Tuned:
    """The result of fine-tuning."""

    method: Method
    """The method with its fine-tuned image head."""
    tower: dict[str, Tensor]
    """State dict of the whole vision tower, with the adaptation merged into it."""
    adapter: dict[str, Tensor]
    """The trained parameters of the tower: LoRA's matrices, or the last stage."""
    kind: str
    """`lora` or `last stage`."""
    history: History


def finetune(
    config: FinetuneConfig,
    pixels: PixelJob,
    method: Method,
    sizes: Tensor,
    images: pa.Table,
    folder: Location,
    resources: Resources,
) -> Tuned:
    """Fine-tune the encoder of `pixels` and the image head of `method` on these images.

    `sizes`: [C] mean probability of each cluster before tuning. `images`: the training rows, see
    :func:`raycluster.finetuning.pixels.batches`. `folder`: Ray Train's folder. Its name must hold the fingerprint, because Ray returns the
    old result of a finished run of that name.
    """
    if resources.train_workers > pixels.batch_size:
        raise ConfigError(
            f"resources.train_workers: {resources.train_workers} workers, but a batch has {pixels.batch_size} images; "
            "lower it, or raise `finetune.batch_size`"
        )
    job = FinetuneJob(config, pixels, sizes)
    workers, cpus = resources.train_workers, resources.pixel_cpus(sharded="group" in images.column_names)
    loop = {
        "job": job,
        "images": [ray.put(images.combine_chunks())],
        "method": [ray.put(method.cpu().eval())],
        # Compute on reserved cores only: a core that also decodes would make all others wait at the end of every layer.
        "threads": max(1, int(cpus.worker)),
        "common": resources.common,
        "cpus": cpus,
    }
    state, record = trainer.fit(_worker, loop, folder, workers, cpus.worker, resources, keep=2)
    trainer.log_history("finetune", record["history"])
    return _merged(job, method, state, record["history"])


def _merged(job: FinetuneJob, method: Method, state: dict[str, Tensor], history: History) -> Tuned:
    model, encoder = job.build(method, "cpu")
    model.load_trained_state(state)
    adapter = {
        name: parameter.detach().clone()
        for name, parameter in model.tower.named_parameters()
        if parameter.requires_grad
    }
    merge(model.tower)
    tower = {name: value.detach().contiguous() for name, value in encoder.model.visual.state_dict().items()}
    return Tuned(model.method.eval().requires_grad_(False), tower, adapter, model.adaptation.kind, history)


def _worker(config: dict[str, Any]) -> None:
    """Fine-tune the model. Ray Train calls this function on every worker."""
    job: FinetuneJob = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = worker_device()
    if device.type == "cpu":
        torch.set_num_threads(config["threads"])
    model, _ = job.build(ray.get(config["method"][0]), str(device))
    optimizer, progress = job.optimizer(model), Progress()
    if (last := trainer.resumed(optimizer)) is not None:
        model.load_trained_state(last[0])
        progress = Progress(**last[1])
    saved = time.monotonic()

    def after_step() -> None:
        nonlocal saved
        if agreed(time.monotonic() - saved >= job.config.checkpoint_seconds) or progress.step == job.steps:
            trainer.report({"step": progress.step}, model.trained_state(), optimizer, asdict(progress))
            saved = time.monotonic()

    steps = range(progress.step, job.steps)
    views = batches(job.pixels, config["images"][0], steps, rank, world, config["cpus"], config["common"])
    train(model, optimizer, on_device(views, device), progress, job.pixels.steps_per_epoch, after_step)
