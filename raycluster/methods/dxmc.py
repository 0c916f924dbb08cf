"""DXMC: Dual-Level Cross-Modal Contrastive Clustering, arXiv 2409.04561.

Image and text counterpart of a picture go through heads of their own. Clusters must agree across modalities between a picture and
its neighbor (cluster level), and a picture must recognize its own counterpart among all others (instance level).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from raycluster.clustering.neighbors import nearest_neighbors
from raycluster.config import MethodConfig
from raycluster.methods.base import Schedule, TrainedMethod, TrainingData
from raycluster.methods.losses.entropy import mean_assignment_entropy
from raycluster.methods.losses.nt_xent import cluster_contrast, nt_xent
from raycluster.training.collectives import GlobalBatchNorm1d
from raycluster.training.counted import integers

MANY_CLUSTERS = 100
"""From here on the authors use their second set of constants."""
IMAGE_STREAM, TEXT_STREAM = 1, 2
"""Streams of the draws of image-space and text-space neighbors."""


class DXMCConfig(MethodConfig):
    """Constants of DXMC. What is not given follows from the profile, the number of images and of clusters."""

    model_config = ConfigDict(extra="forbid")

    temperature: float | None = Field(default=None, gt=0)
    """τ of the cluster-level contrast."""
    instance_temperature: float | None = Field(default=None, gt=0)
    """τ_I of the instance-level contrast, on raw inner products."""
    instance_weight: float | None = Field(default=None, ge=0)
    """Weight of the instance-level contrast: 1 in the paper; 0 by default, for it cannot change the clusters."""
    entropy_weight: float = Field(default=5.0, ge=0)
    """Weight of the entropies of the mean assignments."""
    instance_dim: int = Field(default=1024, ge=1)
    """Width of the instance heads' output."""
    neighbors: int | None = Field(default=None, ge=1)
    """Neighbors of an image, of which one is drawn a step, in image space and in text space."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Adam's rate, constant; betas are (0.9, 0.99)."""
    batch_size: int | None = Field(default=None, ge=2)
    """Rows of the global batch."""
    epochs: int | None = Field(default=None, ge=1)
    """Passes over the training rows."""


def published(n_rows: int, n_clusters: int) -> dict[str, Any]:
    """The authors' constants (their code; METHODS section 3)."""
    instance = {"instance_weight": 1.0}
    if n_clusters < MANY_CLUSTERS:
        return {
            "temperature": 0.5,
            "instance_temperature": 0.05,
            "neighbors": 50,
            "batch_size": 512,
            "epochs": 20,
            **instance,
        }
    batch = min(8192, _power_of_two_below(n_rows / 2))
    return {
        "temperature": 5.0,
        "instance_temperature": 0.5,
        "neighbors": 50,
        "batch_size": batch,
        "epochs": 100,
        **instance,
    }


def scaled(n_rows: int, n_clusters: int) -> dict[str, Any]:
    """Constants for any number of images and clusters; the published ones were tuned to 5,000 and more images.

    Neighbors: about a third of a mean cluster, lest most of them lie outside of it. Batch: several rows a cluster, lest the columns
    of the contrast are noise. Steps: enough for small sets, where an epoch is a handful. No instance level: on frozen embeddings its
    heads share no parameter with the cluster heads, so that the clusters are the same to the last bit without it, at a
    third of the cost.
    """
    batch = max(32, min(8192, max(256, _power_of_two_below(16 * n_clusters)), _power_of_two_below(n_rows / 2)))
    steps_per_epoch = max(1, n_rows // batch)
    return {
        "temperature": 0.2,
        "instance_temperature": 0.5,
        "instance_weight": 0.0,
        "neighbors": max(3, min(50, round(n_rows / n_clusters / 3))),
        "batch_size": batch,
        "epochs": max(5, -(-STEPS // steps_per_epoch)),
    }


STEPS = 400
"""Optimizer steps of the default profile, at least."""


def _power_of_two_below(x: float) -> int:
    return 1 << max(0, int(x).bit_length() - 1)


class DXMC(TrainedMethod):
    """Cluster heads Linear → BatchNorm → ReLU → Linear and instance heads Linear → ReLU → Linear, one of each a modality."""

    name = "dxmc"
    uses_text = True
    Config = DXMCConfig
    config: DXMCConfig

    def __init__(self, config: DXMCConfig, dim: int, n_clusters: int, n_rows: int, seed: int) -> None:
        rules = published if config.profile == "paper" else scaled
        resolved = {key: value for key, value in rules(n_rows, n_clusters).items() if getattr(config, key) is None}
        super().__init__(config.model_copy(update=resolved), dim, n_clusters, n_rows, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.cluster_head_text, self.cluster_head_image = (self._cluster_head() for _ in range(2))
            if self.config.instance_weight:
                self.instance_head_text, self.instance_head_image = (self._instance_head() for _ in range(2))

    def _cluster_head(self) -> nn.Sequential:
        head = nn.Sequential(
            nn.Linear(self.dim, self.dim), GlobalBatchNorm1d(self.dim), nn.ReLU(), nn.Linear(self.dim, self.n_clusters)
        )
        for layer in head:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
        return head

    def _instance_head(self) -> nn.Sequential:
        return nn.Sequential(nn.Linear(self.dim, self.dim), nn.ReLU(), nn.Linear(self.dim, self.config.instance_dim))

    def schedule(self) -> Schedule:
        """The last, incomplete batch is dropped; with fewer rows than a batch there is one batch of all."""
        assert self.config.batch_size is not None
        assert self.config.epochs is not None
        batch = min(self.config.batch_size, self.n_rows)
        return Schedule(batch, self.config.epochs, self.n_rows // batch)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam, rate constant, betas (0.9, 0.99), no decay."""
        return torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, betas=(0.9, 0.99))

    def prepare(self, data: TrainingData) -> dict[str, Tensor]:
        """Neighbors of each row in image space and in text space, [N, k] int32 positions."""
        assert self.config.neighbors is not None
        images, counterparts = _unit(data)
        return {
            "image_neighbors": nearest_neighbors(images, self.config.neighbors).int(),
            "text_neighbors": nearest_neighbors(counterparts, self.config.neighbors).int(),
        }

    def forward_batch(
        self, data: TrainingData, extras: Mapping[str, Tensor], rows: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        """Outputs of both heads for the rows, and of the cluster heads for one neighbor of each."""
        images, counterparts = _unit(data, rows)
        near_image, _ = _unit(data, self._draw(data, extras["image_neighbors"], rows, epoch, IMAGE_STREAM))
        _, near_text = _unit(data, self._draw(data, extras["text_neighbors"], rows, epoch, TEXT_STREAM))
        return self.outputs(counterparts, images, near_text, near_image)

    def outputs(self, text: Tensor, image: Tensor, near_text: Tensor, near_image: Tensor) -> dict[str, Tensor]:
        """[b, d] unit rows each → assignments [b, C] and instance vectors [b, 1024]; batch norm sees rows, then neighbors."""
        outputs = {
            "p": self.cluster_head_text(text).softmax(dim=1),
            "q": self.cluster_head_image(image).softmax(dim=1),
            "near_p": self.cluster_head_text(near_text).softmax(dim=1),
            "near_q": self.cluster_head_image(near_image).softmax(dim=1),
        }
        if self.config.instance_weight:
            outputs |= {"text": self.instance_head_text(text), "image": self.instance_head_image(image)}
        return outputs

    def loss(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """L = ℓ(Q, Pᴺ) + ℓ(P, Qᴺ) + L_ins − 5 [H(P̄) + H(Q̄)], METHODS section 3."""
        config, o = self.config, outputs
        assert config.temperature is not None
        assert config.instance_temperature is not None
        cluster = cluster_contrast(o["q"], o["near_p"], config.temperature) + cluster_contrast(
            o["p"], o["near_q"], config.temperature
        )
        entropy = mean_assignment_entropy(o["p"]) + mean_assignment_entropy(o["q"])
        total = cluster - config.entropy_weight * entropy
        terms = {"cluster": cluster, "entropy": entropy}
        if config.instance_weight:
            terms["instance"] = nt_xent(o["text"], o["image"], config.instance_temperature)
            total = total + config.instance_weight * terms["instance"]
        return total, {name: float(value.detach()) for name, value in {"loss": total, **terms}.items()}

    def _draw(self, data: TrainingData, neighbors: Tensor, rows: Tensor, epoch: int, stream: int) -> Tensor:
        draw = integers(self.seed, epoch, data.row_ids[rows], stream, neighbors.shape[1])
        return neighbors[rows, draw].long()

    def _probabilities(self, embeddings: Tensor) -> Tensor:
        return self.cluster_head_image(normalize(embeddings, dim=1)).softmax(dim=1)


def _unit(data: TrainingData, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    assert data.counterparts is not None
    images = data.images if rows is None else data.images[rows]
    counterparts = data.counterparts if rows is None else data.counterparts[rows]
    return normalize(images, dim=1), normalize(counterparts, dim=1)


METHOD = DXMC
