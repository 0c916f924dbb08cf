"""SIC: Semantic-Enhanced Image Clustering, AAAI 2023, arXiv 2208.09849.

One linear head on raw embeddings. Once an epoch the head's most confident images of each cluster find their nearest nouns, whose
mean becomes the cluster's semantic center; the head then learns these centers' pseudo-labels and its neighbors' assignments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from raycluster.clustering.kmeans import kmeans
from raycluster.config import MethodConfig
from raycluster.errors import ConfigError
from raycluster.methods import scaling
from raycluster.methods.base import BY_PROFILE, NeighborGraph, TrainedConfig, TrainedMethod, TrainingData, detached
from raycluster.methods.losses.agreement import disagreement
from raycluster.methods.losses.entropy import mean_assignment_entropy
from raycluster.semantics.pairing import SemanticSpace, chunks, text_counterparts
from raycluster.training.counted import integers

NOUN_BATCH = 128
"""The authors' mean noun is the mean of the means of batches of this size."""
NEIGHBOR_STREAM = 3
PAIRING_TEMPERATURE = 0.005
"""Of the counterparts, which SIC itself does not use: they serve the report and the label-free scores."""
HUGE = 1000
"""From this number of clusters on the authors use their constants for ImageNet."""


class SICConfig(TrainedConfig):
    """Constants of SIC."""

    relevant_nouns: int = Field(default=500, ge=1)
    """γ_r: a noun is kept if it is among this many nearest of some center …"""
    uniqueness: float = Field(default=0.05, ge=0, le=1)
    """γ_u: … and its cosine to the mean noun is below 1 − γ_u."""
    restarts: int = Field(default=20, ge=1)
    """Runs of the Euclidean k-means whose centers choose the nouns; the best is kept."""
    feature_norm: float = Field(default=10.0, gt=0)
    """All embeddings are multiplied by one number that makes their mean norm this: the head is made for CLIP's raw scale."""
    center_share: float = Field(default=BY_PROFILE, gt=0, le=1)
    """ξ_c: share of a mean cluster whose most confident images make the cluster's center."""
    center_nouns: int = Field(default=BY_PROFILE, ge=1)
    """ξ_a: nearest nouns of a center, whose mean is the semantic center."""
    entropy_weight: float = Field(default=BY_PROFILE, ge=0)
    """λ: weight of the entropy of the mean assignment."""
    pseudo_label_weight: float = Field(default=BY_PROFILE, ge=0)
    """β: weight of the cross-entropy with the pseudo-labels."""
    neighbors: int = Field(default=BY_PROFILE, ge=1)
    """Neighbors of an image by Euclidean distance; one of them or the image itself is drawn a step."""
    head_init: Literal["random", "centers"] = Field(default=BY_PROFILE)
    """Start of the head: at random, or at W = 2αμ, b = −α‖μ‖² of k-means centers μ."""
    center_alpha: float = Field(default=0.05, gt=0)
    """α of `head_init: centers`."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Adam's weight decay."""


class SICSpace(SemanticSpace):
    """Nouns near some image center and unlike the mean noun."""

    kind: str = "sic"
    relevant_nouns: int
    uniqueness: float
    restarts: int
    batch_means: bool
    """The authors' mean noun: the mean of the means of batches of 128."""

    def select(self, images: Tensor, nouns: Tensor, n_clusters: int, seed: int) -> Tensor:
        """Centers by Euclidean k-means of the raw embeddings, with as many centers as clusters."""
        centers = kmeans(images, n_clusters, seed=seed, spherical=False, restarts=self.restarts).centers
        kept = semantic_space(centers, nouns, self.relevant_nouns, self.uniqueness, self.batch_means)
        if not len(kept):
            raise ConfigError(
                "method: SIC's noun selection keeps no noun, for all are alike; lower `method.uniqueness` or give other nouns"
            )
        return kept

    def pair(self, images: Tensor, kept: Tensor) -> Tensor:
        """As TAC does, over all kept nouns."""
        return text_counterparts(normalize(images.float(), dim=1), kept, PAIRING_TEMPERATURE)


def semantic_space(centers: Tensor, nouns: Tensor, relevant_nouns: int, uniqueness: float, batch_means: bool) -> Tensor:
    """Indices (ascending, int64) of nouns that are relevant to a center and unlike the mean noun.

    `centers` [C, d], `nouns` [M, d], any scale. `batch_means`: see :class:`SICSpace`.
    """
    unit = normalize(nouns, dim=1)
    nearest = torch.cat([
        (chunk @ unit.T).topk(min(relevant_nouns, len(nouns)), dim=1).indices.flatten()
        for chunk in chunks(normalize(centers, dim=1), len(nouns))
    ])  # fmt: skip
    relevant = torch.zeros(len(nouns), dtype=torch.bool, device=nouns.device)
    relevant[nearest] = True
    means = [batch.mean(dim=0) for batch in nouns.split(NOUN_BATCH if batch_means else len(nouns))]
    unique = unit @ normalize(torch.stack(means).mean(dim=0), dim=0) < 1 - uniqueness
    return (relevant & unique).nonzero().squeeze(1)


def semantic_centers(
    logits: Tensor, images: Tensor, nouns: Tensor, images_per_center: int, nouns_per_center: int
) -> tuple[Tensor, Tensor]:
    """The paper's adjusted center-based mapping: image centers and semantic centers, unit rows [C, d] each.

    `logits` [N, C], `images` [N, d] and `nouns` [M, d] of any scale. A cluster's image center is the mean of the images with its
    largest logits, its semantic center the mean of that center's nearest nouns.
    """
    chosen = logits.topk(min(images_per_center, len(logits)), dim=0).indices
    image_centers = normalize(torch.stack([images[rows].to(nouns.dtype).mean(dim=0) for rows in chosen.T]), dim=1)
    nearest = (image_centers @ normalize(nouns, dim=1).T).topk(min(nouns_per_center, len(nouns)), dim=1).indices
    return image_centers, normalize(nouns[nearest].mean(dim=1), dim=1)


class SIC(TrainedMethod):
    """One linear head on embeddings brought to norm 10."""

    name = "sic"
    text = "required"
    image_head = ("head",)
    Config = SICConfig
    config: SICConfig
    scale: Tensor
    semantic_centers: Tensor

    @staticmethod
    def published(n_rows: int, n_clusters: int) -> dict[str, Any]:
        """Of the constants that differ from set to set, those for CIFAR-100 and DTD, or for ImageNet."""
        shared = {"neighbors": 20, "epochs": 100}
        if n_clusters < HUGE:
            centers = {"center_share": 0.9, "center_nouns": 30, "entropy_weight": 5.0, "pseudo_label_weight": 1.0}
            return {**shared, **centers, "head_init": "random", "learning_rate": 1e-4, "batch_size": 128}
        centers = {"center_share": 0.5, "center_nouns": 20, "entropy_weight": 1.0, "pseudo_label_weight": 0.1}
        return {**shared, **centers, "head_init": "centers", "learning_rate": 3e-4, "batch_size": 4096}

    @staticmethod
    def scaled(n_rows: int, n_clusters: int) -> dict[str, Any]:
        """A larger rate for fewer, larger batches; more steps, for a linear head is slow; the rest by the common rule."""
        return {
            **SIC.published(n_rows, 2),
            "neighbors": scaling.neighbors(n_rows, n_clusters, most=20),
            "learning_rate": 3e-4,
            **scaling.schedule(n_rows, n_clusters, steps=1000),
        }

    def build_heads(self) -> None:
        """The head, the scale of its input and the clusters' semantic centers."""
        self.head = nn.Linear(self.dim, self.n_clusters)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("semantic_centers", torch.zeros(self.n_clusters, self.dim))

    @classmethod
    def space(cls, config: MethodConfig) -> SemanticSpace:
        """SIC's, with the constants of the configuration."""
        assert isinstance(config, SICConfig)
        return SICSpace(
            relevant_nouns=config.relevant_nouns,
            uniqueness=config.uniqueness,
            restarts=config.restarts,
            batch_means=config.profile == "paper",
        )

    def graphs(self) -> dict[str, NeighborGraph]:
        """Neighbors by Euclidean distance, the row itself among them."""
        return {"neighbors": NeighborGraph("images", self.config.neighbors + 1, "euclidean", include_self=True)}

    @property
    def input_scale(self) -> float:
        """Brings the training images to a mean norm of 10."""
        return float(self.scale)

    def setup(self, data: TrainingData) -> None:
        """The scale of the embeddings, and the head's start."""
        if data.nouns is None:
            raise ConfigError("method: sic needs nouns; give a `vocabulary`")
        norms = torch.cat([part.float().norm(dim=1).double() for part in chunks(data.images, self.dim)])
        self.scale.fill_(self.config.feature_norm / norms.mean().clamp_min(1e-12))
        if self.config.head_init == "centers":
            alpha = self.config.center_alpha
            centers = kmeans(data.images, self.n_clusters, seed=self.seed).centers * self.config.feature_norm
            with torch.no_grad():
                self.head.weight.copy_(2 * alpha * centers)
                self.head.bias.copy_(-alpha * centers.square().sum(dim=1))

    @torch.no_grad()
    def start_epoch(self, data: TrainingData) -> None:
        """New semantic centers from the head as it is."""
        assert data.nouns is not None
        per_center = max(1, int(len(data.images) // self.n_clusters * self.config.center_share))
        columns = torch.arange(self.n_clusters, device=data.images.device)
        # A few clusters at a time: the logits of all images and clusters would not fit at a million images.
        for part in chunks(columns, len(data.images)):
            logits = torch.cat([self._logits(rows, part) for rows in chunks(data.images, self.dim)])
            _, centers = semantic_centers(logits, data.images, data.nouns, per_center, self.config.center_nouns)
            self.semantic_centers[part] = centers

    def _logits(self, images: Tensor, clusters: Tensor | slice = slice(None)) -> Tensor:
        x = images.to(self.head.weight.dtype) * self.scale
        return x @ self.head.weight[clusters].T + self.head.bias[clusters]

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam with weight decay, rate constant."""
        return torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay)

    def forward_batch(
        self, data: TrainingData, neighbors: Mapping[str, Tensor], rows: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        """Logits of the rows and of one neighbor of each, and the rows' pseudo-labels."""
        graph = neighbors["neighbors"]
        draw = integers(self.seed, epoch, data.row_ids[rows], NEIGHBOR_STREAM, graph.shape[1])
        images = data.images[rows]
        return {
            "logits": self._logits(images),
            "near_logits": self._logits(data.images[graph[rows, draw].long()]),
            "pseudo_labels": (images.to(self.scale.dtype) @ self.semantic_centers.T).argmax(dim=1),
        }

    def log_assignments(self, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The one head."""
        return [outputs["logits"].log_softmax(dim=1)]

    def loss(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """L = −mean log⟨q, q_n⟩ − λ H(q̄) + β CE(o, y), as the authors' code has it."""
        q, near = outputs["logits"].softmax(dim=1), outputs["near_logits"].softmax(dim=1)
        consistency, entropy = disagreement(q, near), mean_assignment_entropy(q)
        pseudo = cross_entropy(outputs["logits"], outputs["pseudo_labels"])
        total = consistency - self.config.entropy_weight * entropy + self.config.pseudo_label_weight * pseudo
        return total, detached(loss=total, consistency=consistency, entropy=entropy, pseudo_labels=pseudo)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Of the one head, on scaled embeddings."""
        return self._logits(embeddings)


METHOD = SIC
