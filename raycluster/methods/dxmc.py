"""DXMC: Dual-Level Cross-Modal Contrastive Clustering, arXiv 2409.04561.

DXMC has TAC's heads and cluster-level contrast. An instance-level contrast with heads of its own replaces TAC's consistency term.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from raycluster.methods import tac
from raycluster.methods.base import BY_PROFILE, detached
from raycluster.methods.losses.nt_xent import nt_xent


class DXMCConfig(tac.TACHeadsConfig):
    """Constants of DXMC."""

    instance_temperature: float = Field(default=BY_PROFILE, gt=0)
    """τ_I of the instance-level contrast, on raw inner products."""
    instance_weight: float = Field(default=BY_PROFILE, ge=0)
    """Weight of the instance-level contrast: 1 in the paper; 0 by default, because it cannot change the clusters."""
    instance_dim: int = Field(default=1024, ge=1)
    """Width of the instance heads' output."""


class DXMC(tac.TAC):
    """TAC's cluster heads, and instance heads Linear → ReLU → Linear. Each modality has one of each."""

    name = "dxmc"
    Config = DXMCConfig
    config: DXMCConfig

    @staticmethod
    def published(n_rows: int, n_clusters: int) -> dict[str, Any]:
        """Return TAC's constants and those of the instance level."""
        instance_temperature = 0.05 if n_clusters < tac.MANY_CLUSTERS else 0.5
        shared = tac.TAC.published(n_rows, n_clusters)
        return {**shared, "instance_temperature": instance_temperature, "instance_weight": 1.0}

    @staticmethod
    def scaled(n_rows: int, n_clusters: int) -> dict[str, Any]:
        """Return TAC's constants, and no instance level.

        On frozen embeddings the instance heads share no parameter with the cluster heads. Without them the clusters are the same to the
        last bit, at a third of the cost.
        """
        return {**tac.TAC.scaled(n_rows, n_clusters), "instance_temperature": 0.5, "instance_weight": 0.0}

    def build_heads(self) -> None:
        """Make both heads of each modality. The instance heads come last, so that they do not change the draws of the cluster heads."""
        super().build_heads()
        if self.config.instance_weight:
            self.instance_head_text, self.instance_head_image = (self._instance_head() for _ in range(2))

    def _instance_head(self) -> nn.Sequential:
        return nn.Sequential(nn.Linear(self.dim, self.dim), nn.ReLU(), nn.Linear(self.dim, self.config.instance_dim))

    def outputs(self, text: Tensor, image: Tensor, near_text: Tensor, near_image: Tensor) -> dict[str, Tensor]:
        """Return assignments [b, C] and instance vectors [b, instance_dim] for unit rows [b, d] each.

        Batch norm sees the rows first, then their neighbors.
        """
        outputs = super().outputs(text, image, near_text, near_image)
        if self.config.instance_weight:
            outputs |= {"text": self.instance_head_text(text), "image": self.instance_head_image(image)}
        return outputs

    def loss(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L = ℓ(Q, Pᴺ) + ℓ(P, Qᴺ) + L_ins − 5 [H(P̄) + H(Q̄)], as in the authors' code, and its terms."""
        total, terms = self._guidance(outputs)
        if self.config.instance_weight:
            terms["instance"] = nt_xent(outputs["text"], outputs["image"], self.config.instance_temperature)
            total = total + self.config.instance_weight * terms["instance"]
        return total, detached(loss=total, **terms)


METHOD = DXMC
