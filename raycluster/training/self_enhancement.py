"""SEIC, stage 2: the encoder learns its own confident pseudo-labels. Knows nothing of Ray.

Self-Enhanced Image Clustering with Cross-Modal Semantic Consistency, AAAI 2026, arXiv 2508.01254, as a re-implementation has it: the
weak view of a picture gives its pseudo-label, the strong view learns it, weighted by SoftMatch. Trained are the tower's adaptation
(:mod:`raycluster.encoder.lora`) and the method's image head; all else is frozen, batch norm included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raycluster.encoder.lora import Adaptation, adapt
from raycluster.errors import ConfigError, RayclusterError
from raycluster.methods.base import Method
from raycluster.methods.losses.soft_match import SoftMatch
from raycluster.training.collectives import gather_rows, sum_gradients


@dataclass(frozen=True)
class Views:
    """This worker's share of a global batch."""

    weak: Tensor
    """uint8 [b, height, width, 3]."""
    strong: Tensor
    """The same of the strong views."""
    readable: Tensor
    """bool [b]; rows of pictures that could not be read this time count nowhere."""
    total: int
    """Rows B of the global batch, of which worker r of W holds r, r + W, …"""


class SelfEnhancement(nn.Module):
    """A vision tower and the head behind it, with what is trained of both."""

    adaptation: Adaptation

    def __init__(
        self, tower: nn.Module, method: Method, normalized: Callable[[Tensor], Tensor], rank: int, momentum: float
    ) -> None:
        """`normalized`: uint8 [b, height, width, 3] → what the tower takes. Raises :class:`ConfigError` for a method without a head."""
        super().__init__()
        if not method.image_head:
            raise ConfigError(
                f"finetune: method {method.name} has no image head that could be trained; choose consensus, tac, sic, dxmc or seic"
            )
        self.tower, self.method, self.normalized = tower, method, normalized
        self.adaptation = adapt(tower, rank)
        method.requires_grad_(False)
        for name in method.image_head:
            method.get_submodule(name).requires_grad_(True)
        self.soft_match = SoftMatch(momentum)
        # Batch norm keeps its statistics; there is no dropout.
        self.eval()

    def logits(self, pixels: Tensor) -> Tensor:
        """[b, C] float32 of uint8 [b, height, width, 3]; bf16 on a GPU."""
        if not len(pixels):
            # A worker without rows in a last, short batch: towers need one at least.
            return torch.zeros(0, self.method.n_clusters, device=pixels.device)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.device.type == "cuda"):
            embeddings = self.tower(self.normalized(pixels))
        return self.method.logits(embeddings.float())

    def step(self, optimizer: torch.optim.Optimizer, views: Views) -> dict[str, Tensor]:
        """One step on a global batch; every worker returns the batch's loss, mean confidence and mean weight."""
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            confidence, labels = self.logits(views.weak).softmax(dim=1).max(dim=1)
            readable = gather_rows(views.readable.float(), views.total) > 0
            if not readable.any():
                raise RayclusterError("finetune: none of a batch's pictures could be read; is the storage still there?")
            self.soft_match.update(gather_rows(confidence, views.total)[readable])
        weights = self.soft_match.weights(confidence).float() * views.readable
        losses = weights * cross_entropy(self.logits(views.strong), labels, reduction="none")
        if losses.requires_grad:
            (losses.sum() / readable.sum()).backward()
        sum_gradients(self)
        optimizer.step()
        terms = torch.stack([losses.detach(), confidence * views.readable, weights], dim=1)
        means = gather_rows(terms, views.total).sum(dim=0) / readable.sum()
        return dict(zip(("loss", "confidence", "weight"), means, strict=True))

    def trained_state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: all trainable parameters, and SoftMatch's statistics."""
        trained = {name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {**trained, **{f"soft_match.{name}": value for name, value in self.soft_match.state_dict().items()}}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """The reverse of :meth:`trained_state`."""
        _, unexpected = self.load_state_dict(state, strict=False)
        missing = self.trained_state().keys() - state.keys()
        if unexpected or missing:
            raise RayclusterError(
                f"finetune: a checkpoint of another encoder or method (unknown {sorted(unexpected)[:3]}, missing {sorted(missing)[:3]}); "
                "delete the training folder and run again"
            )
