"""SEIC, stage 2: the encoder learns its own confident pseudo-labels. This module has the model, a step and the loop.

It follows a re-implementation of Self-Enhanced Image Clustering with Cross-Modal Semantic Consistency, AAAI 2026, arXiv 2508.01254. The
weak view of a picture gives its pseudo-label, and the strong view learns it, weighted by SoftMatch. One part is ours: pseudo-labels are
aligned to the cluster sizes before tuning, because otherwise large clusters swallow small ones. The trained parts are the tower's
adaptation (:mod:`raycluster.finetuning.lora`) and the method's image head. Everything else is frozen, including batch norm. This module
does not use Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raycluster.errors import ConfigError, RayclusterError
from raycluster.finetuning.lora import Adaptation, adapt
from raycluster.methods.base import Method
from raycluster.methods.collectives import gather_rows, sum_gradients
from raycluster.methods.losses.alignment import DistributionAlignment
from raycluster.methods.losses.soft_match import SoftMatch
from raycluster.training.loop import History


@dataclass(frozen=True)
class Views:
    """This worker's share of a global batch."""

    weak: Tensor
    """uint8 [b, height, width, 3], the weak views."""
    strong: Tensor
    """uint8 [b, height, width, 3], the strong views."""
    readable: Tensor
    """bool [b], whether the picture could be read this time. Other rows count neither in the loss nor in the statistics."""
    total: int
    """Number B of rows of the global batch. Worker r of W workers holds the rows r, r + W, …"""

    def to(self, device: torch.device) -> Views:
        """Return the share on another device. A copy to a GPU goes through pinned memory and is asynchronous."""

        def moved(tensor: Tensor) -> Tensor:
            return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

        return Views(moved(self.weak), moved(self.strong), moved(self.readable), self.total)


@dataclass
class Progress:
    """The progress of a training."""

    step: int = 0
    """Number of finished steps."""
    history: History = field(default_factory=list)
    """For each finished epoch, the means of the terms over its steps."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the terms over the finished steps of the current epoch."""

    def add(self, terms: dict[str, Tensor], steps_per_epoch: int) -> None:
        """Count one step and its terms. At the end of an epoch, append the means to the history."""
        self.step += 1
        self.sums = {name: self.sums.get(name, 0.0) + float(value) for name, value in terms.items()}
        if self.step % steps_per_epoch == 0:
            self.history.append({name: total / steps_per_epoch for name, total in self.sums.items()})
            self.sums = {}


class SelfEnhancement(nn.Module):
    """A vision tower and the image head behind it, with the parameters of both that are trained."""

    adaptation: Adaptation

    def __init__(
        self,
        tower: nn.Module,
        method: Method,
        normalized: Callable[[Tensor], Tensor],
        rank: int,
        momentum: float,
        sizes: Tensor | None = None,
    ) -> None:
        """Adapt `tower` and make the image head of `method` trainable, in place.

        `normalized` turns uint8 [b, height, width, 3] into the input of the tower. `momentum`: see :class:`SoftMatch`. `sizes`: [C] mean
        probabilities to which pseudo-labels are aligned; None: no alignment.

        Raises :class:`ConfigError` for a method without an image head.
        """
        super().__init__()
        if not method.image_head:
            raise ConfigError(
                f"finetune: method {method.name} has no image head that fine-tuning can train; "
                "choose `method.name: consensus`, tac, sic, dxmc or seic"
            )
        self.tower, self.method, self.normalized = tower, method, normalized
        self.adaptation = adapt(tower, rank)
        method.requires_grad_(False)
        for name in method.image_head:
            method.get_submodule(name).requires_grad_(True)
        self.soft_match = SoftMatch(momentum)
        self.alignment = None if sizes is None else DistributionAlignment(sizes)
        # Eval mode: batch norm keeps its statistics, and nothing is dropped out.
        self.eval()

    def logits(self, pixels: Tensor) -> Tensor:
        """Return logits [b, C] float32 for pixels uint8 [b, height, width, 3]. On a GPU the tower computes in bf16."""
        if not len(pixels):
            # A batch with fewer rows than workers leaves a worker without rows, but towers need at least one.
            return torch.zeros(0, self.method.n_clusters, device=pixels.device)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.device.type == "cuda"):
            embeddings = self.tower(self.normalized(pixels))
        if isinstance(embeddings, tuple):
            # CoCa's tower returns its tokens too.
            embeddings = embeddings[0]
        return self.method.logits(embeddings.float())

    def step(self, optimizer: torch.optim.Optimizer, views: Views) -> dict[str, Tensor]:
        """Take one step on a global batch, and return its terms, the same on every worker.

        The terms are the loss, mean confidence and mean weight of the pseudo-labels, the share of strong views that the model assigns to
        the cluster of their weak view, and the share of readable rows.
        """
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            probabilities = self.logits(views.weak).softmax(dim=1)
            readable = gather_rows(views.readable.float(), views.total) > 0
            if not readable.any():
                raise RayclusterError(
                    "finetune: no picture of the batch could be read; check that the storage can be reached, and run again"
                )
            if self.alignment is not None:
                self.alignment.update(gather_rows(probabilities, views.total)[readable])
                probabilities = self.alignment(probabilities)
            confidence, labels = probabilities.max(dim=1)
            self.soft_match.update(gather_rows(confidence, views.total)[readable])
        weights = self.soft_match.weights(confidence).float() * views.readable
        logits = self.logits(views.strong)
        losses = weights * cross_entropy(logits, labels, reduction="none")
        if losses.requires_grad:
            (losses.sum() / readable.sum()).backward()
        sum_gradients(self)
        optimizer.step()
        agreement = (logits.detach().argmax(dim=1) == labels).float() * views.readable
        terms = torch.stack([losses.detach(), confidence * views.readable, weights, agreement], dim=1)
        means = gather_rows(terms, views.total).sum(dim=0) / readable.sum()
        return {
            **dict(zip(("loss", "confidence", "weight", "agreement"), means, strict=True)),
            "readable": readable.float().mean(),
        }

    def trained_state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold: all trainable parameters and the statistics of the pseudo-labels."""
        trained = {name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad}
        statistics = ("soft_match.", "alignment.")
        return {**trained, **{name: value for name, value in self.state_dict().items() if name.startswith(statistics)}}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Load what :meth:`trained_state` returned. Raises :class:`RayclusterError` if the names do not match."""
        _, unexpected = self.load_state_dict(state, strict=False)
        missing = self.trained_state().keys() - state.keys()
        if unexpected or missing:
            raise RayclusterError(
                f"finetune: the checkpoint is of another encoder or method (unknown {sorted(unexpected)[:3]}, missing {sorted(missing)[:3]}); "
                "delete the folder `training` below `output` and run again"
            )


def on_device(batches: Iterable[Views], device: torch.device) -> Iterator[Views]:
    """Yield the batches on the device. While a step computes on one batch, the next one is copied there on a separate stream.

    On a CPU the same code runs: nothing is copied, and the streams do nothing.
    """
    runtime = torch.get_device_module(device)
    copies, coming = runtime.Stream(), None
    for views in batches:
        with runtime.stream(copies):
            following = views.to(device)
        if coming is not None:
            yield coming
        runtime.current_stream().wait_stream(copies)
        if device.type == "cuda":
            # Otherwise the allocator could reuse the batch's memory for the next copy while a step still uses it.
            for tensor in (following.weak, following.strong, following.readable):
                tensor.record_stream(runtime.current_stream())
        coming = following
    if coming is not None:
        yield coming


def train(
    model: SelfEnhancement,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Views],
    progress: Progress,
    steps_per_epoch: int,
    after_step: Callable[[], None] | None = None,
) -> None:
    """Take one step for each batch, and update `progress` after each. `after_step` is called on every worker.

    Raises :class:`RayclusterError` on every worker for a loss that is not finite, and on a worker that runs out of GPU memory.
    """
    for views in batches:
        try:
            terms = model.step(optimizer, views)
        except torch.OutOfMemoryError as error:
            raise RayclusterError(
                f"finetune: out of GPU memory at step {progress.step + 1} ({str(error).split('.')[0]}); lower `finetune.batch_size`, "
                "set `finetune.gradient_checkpointing: true`, or raise `resources.train_workers`"
            ) from None
        if not torch.isfinite(terms["loss"]):
            raise RayclusterError(
                f"finetune: the loss became {float(terms['loss'])} at step {progress.step + 1}, epoch "
                f"{progress.step // steps_per_epoch + 1}; lower `finetune.learning_rate`. Earlier checkpoints are kept"
            )
        progress.add(terms, steps_per_epoch)
        if after_step is not None:
            after_step()
