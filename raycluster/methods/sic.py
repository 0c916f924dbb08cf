"""SIC: Semantic-Enhanced Image Clustering, AAAI 2023, arXiv 2208.09849.

The method trains one linear head on raw embeddings. Once an epoch, the most confident images of each cluster are averaged to an image
center, and the mean of this center's nearest nouns becomes the cluster's semantic center. The head then learns the pseudo-labels that
these semantic centers give, and the assignments of each image's neighbors.
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
from raycluster.randomness import integers
from raycluster.semantics.pairing import SemanticSpace, chunks, text_counterparts

NOUN_BATCH = 128
"""The authors' mean noun is the mean of the means of batches of this size."""
NEIGHBOR_STREAM = 3
PAIRING_TEMPERATURE = 0.005
"""Temperature of the text counterparts. SIC itself does not use them; the report and the label-free scores do."""
HUGE = 1000
"""From this number of clusters on, the authors' constants for ImageNet are used."""


class SICConfig(TrainedConfig):
    """Constants of SIC."""

    relevant_nouns: int = Field(default=500, ge=1)
    """γ_r: a noun is relevant if it is among this many nearest nouns of some center. Only relevant nouns are kept."""
    uniqueness: float = Field(default=0.05, ge=0, le=1)
    """γ_u: a relevant noun is kept only if its cosine to the mean noun is below 1 − γ_u."""
    restarts: int = Field(default=20, ge=1)
    """Runs of the Euclidean k-means that gives the centers for the choice of nouns. The best run is kept."""
    feature_norm: float = Field(default=10.0, gt=0)
    """Mean norm to which one common factor brings all embeddings, because the head is made for CLIP's raw scale."""
    center_share: float = Field(default=BY_PROFILE, gt=0, le=1)
    """ξ_c: number of most confident images that make a cluster's center, as a share of the mean cluster size."""
    center_nouns: int = Field(default=BY_PROFILE, ge=1)
    """ξ_a: number of a center's nearest nouns. Their mean is the semantic center."""
    entropy_weight: float = Field(default=BY_PROFILE, ge=0)
    """λ: weight of the entropy of the mean assignment."""
    pseudo_label_weight: float = Field(default=BY_PROFILE, ge=0)
    """β: weight of the cross-entropy with the pseudo-labels."""
    neighbors: int = Field(default=BY_PROFILE, ge=1)
    """Neighbors of an image by Euclidean distance. Each step draws one of them or the image itself."""
    head_init: Literal["random", "centers"] = Field(default=BY_PROFILE)
    """Start of the head: `random`, or `centers` for W = 2αμ and b = −α‖μ‖² of k-means centers μ."""
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
    """Whether the mean noun is the authors' one, the mean of the means of batches of 128, or the plain mean."""

    def select(self, images: Tensor, nouns: Tensor, n_clusters: int, seed: int) -> Tensor:
        """Select nouns by :func:`semantic_space`. Centers come from Euclidean k-means of the raw embeddings, one for each cluster."""
        centers = kmeans(images, n_clusters, seed=seed, spherical=False, restarts=self.restarts).centers
        kept = semantic_space(centers, nouns, self.relevant_nouns, self.uniqueness, self.batch_means)
        if not len(kept):
            raise ConfigError(
                "method: sic keeps no noun, because all relevant nouns are too similar to the mean noun; "
                "lower `method.uniqueness` or give other nouns"
            )
        return kept

    def pair(self, images: Tensor, kept: Tensor) -> Tensor:
        """Return text counterparts made of all kept nouns, as in TAC."""
        return text_counterparts(normalize(images.float(), dim=1), kept, PAIRING_TEMPERATURE)


def semantic_space(centers: Tensor, nouns: Tensor, relevant_nouns: int, uniqueness: float, batch_means: bool) -> Tensor:
    """Return the indices (ascending, int64) of nouns that are relevant to a center and unlike the mean noun.

    `centers` [C, d] and `nouns` [M, d] may have any scale. `batch_means`: see :class:`SICSpace`.
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
    """Return image centers and semantic centers, unit rows [C, d] each: the paper's adjusted center-based mapping.

    `logits` [N, C]; `images` [N, d] and `nouns` [M, d] may have any scale. A cluster's image center is the mean of the images with the
    largest logits for the cluster. Its semantic center is the mean of the nouns nearest to the image center.
    """
    chosen = logits.topk(min(images_per_center, len(logits)), dim=0).indices
    image_centers = normalize(torch.stack([images[rows].to(nouns.dtype).mean(dim=0) for rows in chosen.T]), dim=1)
    nearest = (image_centers @ normalize(nouns, dim=1).T).topk(min(nouns_per_center, len(nouns)), dim=1).indices
    return image_centers, normalize(nouns[nearest].mean(dim=1), dim=1)


class SIC(TrainedMethod):
    """One linear head on embeddings that are scaled to a mean norm of `feature_norm`."""

    name = "sic"
    text = "required"
    image_head = ("head",)
    Config = SICConfig
    config: SICConfig
    scale: Tensor
    semantic_centers: Tensor

    @staticmethod
    def published(n_rows: int, n_clusters: int) -> dict[str, Any]:
        """Return the authors' constants for CIFAR-100 and DTD, or, with many clusters, for ImageNet."""
        shared = {"neighbors": 20, "epochs": 100}
        if n_clusters < HUGE:
            centers = {"center_share": 0.9, "center_nouns": 30, "entropy_weight": 5.0, "pseudo_label_weight": 1.0}
            return {**shared, **centers, "head_init": "random", "learning_rate": 1e-4, "batch_size": 128}
        centers = {"center_share": 0.5, "center_nouns": 20, "entropy_weight": 1.0, "pseudo_label_weight": 0.1}
        return {**shared, **centers, "head_init": "centers", "learning_rate": 3e-4, "batch_size": 4096}

    @staticmethod
    def scaled(n_rows: int, n_clusters: int) -> dict[str, Any]:
        """Return the authors' constants for CIFAR-100 and DTD, with neighbors, batch and epochs by the common rule.

        The learning rate is larger, because there are fewer and larger batches. There are more steps than in other methods, because a
        linear head learns slowly.
        """
        return {
            **SIC.published(n_rows, 2),
            "neighbors": scaling.neighbors(n_rows, n_clusters, most=20),
            "learning_rate": 3e-4,
            **scaling.schedule(n_rows, n_clusters, steps=1000),
        }

    def build_heads(self) -> None:
        """Make the head, the scale of its input and the clusters' semantic centers."""
        self.head = nn.Linear(self.dim, self.n_clusters)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("semantic_centers", torch.zeros(self.n_clusters, self.dim))

    @classmethod
    def space(cls, config: MethodConfig) -> SemanticSpace:
        """Return SIC's semantic space with the constants of the configuration."""
        assert isinstance(config, SICConfig)
        return SICSpace(
            relevant_nouns=config.relevant_nouns,
            uniqueness=config.uniqueness,
            restarts=config.restarts,
            batch_means=config.profile == "paper",
        )

    def graphs(self) -> dict[str, NeighborGraph]:
        """Return the graph of neighbors by Euclidean distance. Each row is among its own neighbors."""
        return {"neighbors": NeighborGraph("images", self.config.neighbors + 1, "euclidean", include_self=True)}

    @property
    def input_scale(self) -> float:
        """The factor that brings the training images to a mean norm of `feature_norm`."""
        return float(self.scale)

    def setup(self, data: TrainingData) -> None:
        """Set the scale of the embeddings and the start of the head."""
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
        """Compute new semantic centers from the current head."""
        assert data.nouns is not None
        per_center = max(1, int(len(data.images) // self.n_clusters * self.config.center_share))
        columns = torch.arange(self.n_clusters, device=data.images.device)
        # A few clusters at a time: with a million images, the logits of all clusters would not fit into memory.
        for part in chunks(columns, len(data.images)):
            logits = torch.cat([self._logits(rows, part) for rows in chunks(data.images, self.dim)])
            _, centers = semantic_centers(logits, data.images, data.nouns, per_center, self.config.center_nouns)
            self.semantic_centers[part] = centers

    def _logits(self, images: Tensor, clusters: Tensor | slice = slice(None)) -> Tensor:
        x = images.to(self.head.weight.dtype) * self.scale
        return x @ self.head.weight[clusters].T + self.head.bias[clusters]

    def optimizer(self) -> torch.optim.Optimizer:
        """Return Adam with weight decay and a constant learning rate."""
        return torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay)

    def forward_batch(
        self, data: TrainingData, neighbors: Mapping[str, Tensor], rows: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        """Return the logits of the rows, the logits of one neighbor of each row, and the rows' pseudo-labels."""
        graph = neighbors["neighbors"]
        draw = integers(self.seed, epoch, data.row_ids[rows], NEIGHBOR_STREAM, graph.shape[1])
        images = data.images[rows]
        return {
            "logits": self._logits(images),
            "near_logits": self._logits(data.images[graph[rows, draw].long()]),
            "pseudo_labels": (images.to(self.scale.dtype) @ self.semantic_centers.T).argmax(dim=1),
        }

    def log_assignments(self, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the assignments of the only head."""
        return [outputs["logits"].log_softmax(dim=1)]

    def loss(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L = −mean log⟨q, q_n⟩ − λ H(q̄) + β CE(o, y), as in the authors' code, and its terms."""
        q, near = outputs["logits"].softmax(dim=1), outputs["near_logits"].softmax(dim=1)
        consistency, entropy = disagreement(q, near), mean_assignment_entropy(q)
        pseudo = cross_entropy(outputs["logits"], outputs["pseudo_labels"])
        total = consistency - self.config.entropy_weight * entropy + self.config.pseudo_label_weight * pseudo
        return total, detached(loss=total, consistency=consistency, entropy=entropy, pseudo_labels=pseudo)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the logits of the head on scaled embeddings."""
        return self._logits(embeddings)


METHOD = SIC
