"""SEIC, stage 1: Self-Enhanced Image Clustering with Cross-Modal Semantic Consistency, AAAI 2026, arXiv 2508.01254.

The losses make an image and its text counterpart agree at three levels: the projected vectors, the clusters' columns of assignments, and
the clusters' confidence-weighted centers. A balance term keeps clusters from growing too large; a history of cluster sizes sets its
weights. The paper's tables and code could not be obtained, so floor, cap and fixed temperatures are those of an independent
re-implementation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from raycluster.clustering.kmeans import SAMPLE_ROWS_A_CENTER, kmeans
from raycluster.config import MethodConfig
from raycluster.methods import scaling
from raycluster.methods.base import BY_PROFILE, TrainedConfig, TrainedMethod, TrainingData, detached
from raycluster.methods.collectives import replicated
from raycluster.methods.losses.info_nce import info_nce
from raycluster.semantics.pairing import SemanticSpace, chunks

SMALLEST_SHARE = 1e-8
"""Smallest mean assignment before the logarithm is taken."""


class SEICConfig(TrainedConfig):
    """Constants of SEIC's first stage."""

    center_nouns: int = Field(default=200, ge=1)
    """k₁: number of nearest nouns of each k-means center that become candidates."""
    image_nouns: int = Field(default=50, ge=1)
    """k₂: number of nearest candidates of an image that make its text counterpart."""
    text_temperature: float = Field(default=0.01, gt=0)
    """Temperature τ_w of the weights of the nouns in a text counterpart."""
    instance_weight: float = Field(default=0.5, ge=0)
    """Weight of the instance level."""
    assignment_weight: float = Field(default=1.0, ge=0)
    """Weight of the assignment level."""
    center_weight: float = Field(default=1.0, ge=0)
    """Weight of the center level."""
    balance_weight: float = Field(default=2.0, ge=0)
    """Weight of the balance term."""
    instance_temperature: float = Field(default=0.07, gt=0)
    """Start of the instance level's temperature exp(−s), which is trained."""
    instance_temperature_floor: float = Field(default=0.01, gt=0)
    """Smallest value of the instance level's temperature. The default is CLIP's: exp(s) ≤ 100."""
    assignment_temperature: float = Field(default=0.5, gt=0)
    """Temperature of the assignment level."""
    center_temperature: float = Field(default=0.5, gt=0)
    """Temperature of the center level."""
    feature_norm: float = Field(default=BY_PROFILE, gt=0)
    """Factor that the unit projections are multiplied by before the cluster layer."""
    head_init: Literal["random", "centers"] = Field(default=BY_PROFILE)
    """Start of the heads: `random`, or `centers` for the centers of k-means on images and counterparts side by side."""
    start_temperature: float = Field(default=0.05, gt=0)
    """With `head_init: centers`: the first probabilities are softmax(cosine to the centers / this), as in `kmeans`."""
    weight_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the truncated normal distribution from which weights are drawn."""
    history_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Share of the history of cluster sizes that a step keeps."""
    history_floor: float = Field(default=BY_PROFILE, gt=0)
    """Smallest share of a cluster in the history when its weight is computed."""
    largest_weight: float = Field(default=5.0, gt=0)
    """Largest weight of a cluster in the balance term, before the weights are divided by their mean."""


class SEICSpace(SemanticSpace):
    """The nearest nouns of each k-means center are candidates. Each image takes its own nearest candidates."""

    kind: str = "seic"
    center_nouns: int
    image_nouns: int
    temperature: float

    def select(self, images: Tensor, nouns: Tensor, n_clusters: int, seed: int) -> Tensor:
        """Select nouns by :func:`candidates`. Centers come from spherical k-means, one for each cluster."""
        centers = kmeans(images, n_clusters, seed=seed).centers
        return candidates(centers, nouns, self.center_nouns)

    def pair(self, images: Tensor, kept: Tensor) -> Tensor:
        """Return the text counterparts of :func:`weighted_nouns`."""
        unit = normalize(images.float(), dim=1)
        parts = [weighted_nouns(chunk, kept, self.image_nouns, self.temperature) for chunk in chunks(unit, len(kept))]
        return torch.cat(parts)


def candidates(centers: Tensor, nouns: Tensor, per_center: int) -> Tensor:
    """Return the union of the centers' nearest nouns, as ascending int64 indices. `centers` [C, d], `nouns` [M, d]: unit rows."""
    return (centers @ nouns.T).topk(min(per_center, len(nouns)), dim=1).indices.unique()


def weighted_nouns(images: Tensor, kept: Tensor, per_image: int, temperature: float) -> Tensor:
    """Return text counterparts [N, d]: the normalized mean of each image's nearest nouns, weighted by softmax(similarity / temperature).

    `images` [N, d], `kept` [M, d]: unit rows.
    """
    similarity, index = (images @ kept.T).topk(min(per_image, len(kept)), dim=1)
    weights = torch.zeros(len(images), len(kept), dtype=images.dtype, device=images.device)
    weights.scatter_(1, index, (similarity / temperature).softmax(dim=1))
    return normalize(weights @ kept, dim=1)


def weighted_centers(p: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums Σ p_ik z_i over the images i with argmax k, [C, d], and which clusters k have such images, bool [C].

    `p` [B, C]: assignments; `z` [B, d]: vectors.
    """
    assigned = torch.zeros_like(p).scatter_(1, p.argmax(dim=1, keepdim=True), 1.0)
    weights = p * assigned
    return weights.T @ z, weights.detach().sum(dim=0) > 1e-8


def balance_weights(history: Tensor, floor: float, largest: float) -> Tensor:
    """Return the clusters' weights [C] in the balance term from the history of their sizes [C]. The mean weight is 1."""
    floored = history.clamp_min(floor)
    weights = (1 / len(history) / (floored / floored.sum())).clamp_max(largest)
    return weights / weights.mean()


def balance(p: Tensor, weights: Tensor) -> Tensor:
    """Return Σ_j w_j p̄_j log p̄_j of assignments [B, C]. With equal weights it is smallest when all clusters are used equally."""
    return -(weights * torch.special.entr(p.mean(dim=0).clamp_min(SMALLEST_SHARE))).sum()


def updated_history(history: Tensor, p: Tensor, momentum: float) -> Tensor:
    """Return m · history + (1 − m) · share of each cluster among the argmax of p [B, C], scaled to sum to 1."""
    counts = torch.bincount(p.argmax(dim=1), minlength=len(history))
    # Shares are in single precision, as in the recorded values that the tests compare with.
    mixed = momentum * history + (1 - momentum) * (counts.float() / len(p))
    return mixed / mixed.sum()


class SEIC(TrainedMethod):
    """A projection Linear(d, d), normalized, and a cluster layer Linear(d, C) for each modality. The image side predicts."""

    name = "seic"
    text = "required"
    image_head = ("image_projection", "image_clustering")
    Config = SEICConfig
    config: SEICConfig
    image_projection: nn.Linear
    text_projection: nn.Linear
    image_clustering: nn.Linear
    text_clustering: nn.Linear
    history: Tensor

    @staticmethod
    def published(n_rows: int, n_clusters: int) -> dict[str, Any]:
        """Return the constants of the independent re-implementation."""
        return {
            "feature_norm": 1.0,
            "head_init": "random",
            "history_floor": 0.01,
            "learning_rate": 5e-3,
            "batch_size": 1024,
            "epochs": 200,
        }

    @staticmethod
    def scaled(n_rows: int, n_clusters: int) -> dict[str, Any]:
        """Return constants by the common rule, with a lower floor of the history.

        From C = 100 clusters on, the published floor is not below the equal share 1 / C, and the weights lose their effect.
        """
        floor = min(0.01, 0.1 / n_clusters)
        return {
            "feature_norm": 10.0,
            "head_init": "centers",
            "history_floor": floor,
            "learning_rate": 3e-4,
            **scaling.schedule(n_rows, n_clusters),
        }

    def build_heads(self) -> None:
        """Make projection and cluster layer of each modality, the logit scale, and the history, which starts uniform."""
        for modality in ("image", "text"):
            for name, width in (("projection", self.dim), ("clustering", self.n_clusters)):
                layer = nn.Linear(self.dim, width)
                nn.init.trunc_normal_(layer.weight, std=self.config.weight_std)
                setattr(self, f"{modality}_{name}", layer)
        self.instance_logit_scale = nn.Parameter(torch.tensor(-math.log(self.config.instance_temperature)))
        self.register_buffer("history", torch.full((self.n_clusters,), 1 / self.n_clusters))

    @classmethod
    def space(cls, config: MethodConfig) -> SemanticSpace:
        """Return SEIC's semantic space with the constants of the configuration."""
        assert isinstance(config, SEICConfig)
        return SEICSpace(
            center_nouns=config.center_nouns,
            image_nouns=config.image_nouns,
            temperature=config.text_temperature,
        )

    @torch.no_grad()
    def setup(self, data: TrainingData) -> None:
        """With `head_init: centers`, set projections to the identity and cluster layers to the centers.

        The first probabilities are then as confident as those of k-means.
        """
        if self.config.head_init == "random":
            return
        # k-means looks at a sample of so many rows anyway. Joined rows of all images would take 2 GB for a million.
        order = torch.randperm(len(data.row_ids), generator=torch.Generator().manual_seed(self.seed))
        some = order[: SAMPLE_ROWS_A_CENTER * self.n_clusters].sort().values.to(data.row_ids.device)
        centers = kmeans(data.side_by_side(some), self.n_clusters, seed=self.seed).centers
        for side, half in zip(("image", "text"), centers.split(self.dim, dim=1), strict=True):
            projection, clustering = getattr(self, f"{side}_projection"), getattr(self, f"{side}_clustering")
            projection.weight.copy_(torch.eye(self.dim))
            clustering.weight.copy_(normalize(half, dim=1) / (self.config.start_temperature * self.config.feature_norm))
            for layer in (projection, clustering):
                layer.bias.zero_()

    def optimizer(self) -> torch.optim.Optimizer:
        """Return Adam with a constant learning rate."""
        return torch.optim.Adam(self.parameters(), lr=self.config.learning_rate)

    def forward_batch(
        self, data: TrainingData, neighbors: Mapping[str, Tensor], rows: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        """Return projections and logits of the rows in both modalities. SEIC uses no neighbors."""
        return self.outputs(data.unit_images(rows), data.unit_counterparts(rows))

    def outputs(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        """Return unit projections [b, d] and logits [b, C] for unit rows [b, d] each."""
        z_image = normalize(self.image_projection(image), dim=1)
        z_text = normalize(self.text_projection(text), dim=1)
        return {
            "z_image": z_image,
            "z_text": z_text,
            "logits_image": self.image_clustering(self.config.feature_norm * z_image),
            "logits_text": self.text_clustering(self.config.feature_norm * z_text),
        }

    def log_assignments(self, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the logarithms for the image head, then for the text head."""
        return [outputs[logits].log_softmax(dim=1) for logits in ("logits_image", "logits_text")]

    def loss(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L = ½ NCE(z) + NCE(assignments) + NCE(centers) + 2 L_bal, as in the re-implementation, and its terms."""
        config, o = self.config, outputs
        p, q = o["logits_image"].softmax(dim=1), o["logits_text"].softmax(dim=1)
        scale = replicated(self.instance_logit_scale).exp().clamp_max(1 / config.instance_temperature_floor)
        instance = info_nce(o["z_image"], o["z_text"], 1 / scale)
        assignment = info_nce(p.T, q.T, config.assignment_temperature)
        (image_centers, used), (text_centers, also) = (
            weighted_centers(p, o["z_image"]),
            weighted_centers(q, o["z_text"]),
        )
        both = used & also
        center = info_nce(image_centers[both], text_centers[both], config.center_temperature)
        weights = balance_weights(self.history, config.history_floor, config.largest_weight)
        balanced = balance(p, weights) + balance(q, weights)
        total = (
            config.instance_weight * instance
            + config.assignment_weight * assignment
            + config.center_weight * center
            + config.balance_weight * balanced
        )
        return total, detached(loss=total, instance=instance, assignment=assignment, center=center, balance=balanced)

    def after_step(self, outputs: Mapping[str, Tensor]) -> None:
        """Update the history of cluster sizes."""
        self.history.copy_(updated_history(self.history, outputs["logits_image"], self.config.history_momentum))

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the logits of the image's projection and cluster layer."""
        z = normalize(self.image_projection(normalize(embeddings, dim=1)), dim=1)
        logits: Tensor = self.image_clustering(self.config.feature_norm * z)
        return logits


METHOD = SEIC
