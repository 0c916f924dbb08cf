"""TAC: Image Clustering with External Guidance, ICML 2024, arXiv 2310.11989, with and without training.

Text counterparts of the images (semantics/pairing.py) guide the clusters. Without training, k-means clusters images and counterparts
side by side. With training, each modality has a head that learns to assign an image like its neighbors in the other modality.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from raycluster.clustering.kmeans import kmeans
from raycluster.config import MethodConfig
from raycluster.errors import ConfigError
from raycluster.methods import scaling
from raycluster.methods.base import (
    BY_PROFILE,
    FittedMethod,
    Method,
    NeighborGraph,
    TrainedConfig,
    TrainedMethod,
    TrainingData,
    detached,
    side_by_side,
)
from raycluster.methods.collectives import GlobalBatchNorm1d
from raycluster.methods.losses.agreement import disagreement
from raycluster.methods.losses.entropy import mean_assignment_entropy
from raycluster.methods.losses.nt_xent import cluster_contrast
from raycluster.randomness import integers
from raycluster.semantics.pairing import SemanticSpace, TACSpace

MANY_CLUSTERS = 100
"""From this number of clusters on, the authors use their second set of constants."""
SMALLEST_PROBABILITY = 1e-12
IMAGE_STREAM, TEXT_STREAM = 1, 2
"""Streams of the draws of neighbors in image space and in text space (:mod:`raycluster.randomness`)."""


class TACHeadsConfig(TrainedConfig):
    """Constants that TAC and DXMC share."""

    images_per_center: int = Field(default=300, ge=1)
    """Images for each semantic center, if the mean cluster is larger than that."""
    centers_per_cluster: int = Field(default=3, ge=1)
    """Semantic centers for each cluster, if the mean cluster is not larger than `images_per_center`."""
    nouns_per_center: int = Field(default=5, ge=1)
    """Nouns that a semantic center keeps."""
    text_temperature: float = Field(default=0.005, gt=0)
    """Temperature τ̃ of the text counterparts."""
    temperature: float = Field(default=BY_PROFILE, gt=0)
    """Temperature τ of the cluster-level contrast."""
    entropy_weight: float = Field(default=5.0, ge=0)
    """Weight of the entropy of the mean assignments of both heads."""
    weight_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the truncated normal distribution from which the cluster heads' weights are drawn."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's decay rates of its two moments."""
    neighbors: int = Field(default=BY_PROFILE, ge=1)
    """Neighbors of an image in image space and in text space. Each step draws one in each space."""


class TACConfig(TACHeadsConfig):
    """Constants of TAC."""

    trained: bool = True
    """`false`: no heads are trained; k-means clusters images and counterparts side by side."""
    consistency_weight: float = Field(default=1.0, ge=0)
    """Weight of the consistency of an image with its own counterpart."""
    restarts: int = Field(default=1, ge=1)
    """Without training: number of k-means runs from fresh seeds. The best run is kept."""
    assignment_temperature: float = Field(default=0.05, gt=0)
    """Without training: probabilities are softmax(cosine to the centers / temperature)."""


class TAC(TrainedMethod):
    """Cluster heads Linear → BatchNorm → ReLU → Linear, one for each modality. The image head predicts."""

    name = "tac"
    text = "required"
    image_head = ("cluster_head_image",)
    Config: ClassVar[type[MethodConfig]] = TACConfig
    config: TACHeadsConfig

    @staticmethod
    def published(n_rows: int, n_clusters: int) -> dict[str, Any]:
        """Return the authors' constants. Their code has a second set for many clusters."""
        few = {"temperature": 0.5, "batch_size": 512, "epochs": 20}
        many = {"temperature": 5.0, "batch_size": min(8192, scaling.power_of_two_below(n_rows / 2)), "epochs": 100}
        return {"neighbors": 50, "learning_rate": 1e-3, **(few if n_clusters < MANY_CLUSTERS else many)}

    @staticmethod
    def scaled(n_rows: int, n_clusters: int) -> dict[str, Any]:
        """Return constants by the common rule, and a lower temperature, because batches are small and clusters may be many."""
        return {
            "temperature": 0.2,
            "neighbors": scaling.neighbors(n_rows, n_clusters, most=50),
            "learning_rate": 1e-3,
            **scaling.schedule(n_rows, n_clusters),
        }

    def build_heads(self) -> None:
        """Make one cluster head for each modality."""
        self.cluster_head_text, self.cluster_head_image = (self._cluster_head() for _ in range(2))

    @classmethod
    def variant(cls, config: MethodConfig) -> type[Method]:
        """Return :class:`TrainingFreeTAC` for a configuration without training, else this class."""
        return TrainingFreeTAC if isinstance(config, TACConfig) and not config.trained else cls

    @classmethod
    def space(cls, config: MethodConfig) -> SemanticSpace:
        """Return TAC's semantic space with the constants of the configuration."""
        return _space(config)

    def _cluster_head(self) -> nn.Sequential:
        head = nn.Sequential(
            nn.Linear(self.dim, self.dim), GlobalBatchNorm1d(self.dim), nn.ReLU(), nn.Linear(self.dim, self.n_clusters)
        )
        for layer in head:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=self.config.weight_std)
        return head

    def optimizer(self) -> torch.optim.Optimizer:
        """Return Adam with a constant learning rate and without weight decay."""
        return torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, betas=self.config.betas)

    def graphs(self) -> dict[str, NeighborGraph]:
        """Return the graphs of neighbors by cosine in image space and in text space. A row is not its own neighbor."""
        return {
            "image_neighbors": NeighborGraph("images", self.config.neighbors),
            "text_neighbors": NeighborGraph("counterparts", self.config.neighbors),
        }

    def forward_batch(
        self, data: TrainingData, neighbors: Mapping[str, Tensor], rows: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        """Return the outputs of the heads for the rows, and of the cluster heads for one neighbor of each row in each space."""
        near_image = self._draw(data, neighbors["image_neighbors"], rows, epoch, IMAGE_STREAM)
        near_text = self._draw(data, neighbors["text_neighbors"], rows, epoch, TEXT_STREAM)
        return self.outputs(
            data.unit_counterparts(rows),
            data.unit_images(rows),
            data.unit_counterparts(near_text),
            data.unit_images(near_image),
        )

    def outputs(self, text: Tensor, image: Tensor, near_text: Tensor, near_image: Tensor) -> dict[str, Tensor]:
        """Return assignments [b, C] for unit rows [b, d] each. Batch norm sees the rows first, then their neighbors."""
        return {
            "p": self.cluster_head_text(text).softmax(dim=1),
            "q": self.cluster_head_image(image).softmax(dim=1),
            "near_p": self.cluster_head_text(near_text).softmax(dim=1),
            "near_q": self.cluster_head_image(near_image).softmax(dim=1),
        }

    def log_assignments(self, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the logarithms for the image head, then for the text head.

        A probability that single precision rounds to 0 still has a finite logarithm.
        """
        return [outputs[head].clamp_min(SMALLEST_PROBABILITY).log() for head in ("q", "p")]

    def loss(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L = ℓ(Q, Pᴺ) + ℓ(P, Qᴺ) − mean log⟨p, q⟩ − 5 [H(P̄) + H(Q̄)], as in the authors' code, and its terms."""
        assert isinstance(self.config, TACConfig)
        total, terms = self._guidance(outputs)
        consistency = disagreement(outputs["p"], outputs["q"])
        total = total + self.config.consistency_weight * consistency
        return total, detached(loss=total, consistency=consistency, **terms)

    def _guidance(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the part of the loss that TAC and DXMC share, ℓ(Q, Pᴺ) + ℓ(P, Qᴺ) − 5 [H(P̄) + H(Q̄)], and its terms."""
        cluster = cluster_contrast(outputs["q"], outputs["near_p"], self.config.temperature)
        cluster = cluster + cluster_contrast(outputs["p"], outputs["near_q"], self.config.temperature)
        entropy = mean_assignment_entropy(outputs["p"]) + mean_assignment_entropy(outputs["q"])
        return cluster - self.config.entropy_weight * entropy, {"cluster": cluster, "entropy": entropy}

    def _draw(self, data: TrainingData, neighbors: Tensor, rows: Tensor, epoch: int, stream: int) -> Tensor:
        draw = integers(self.seed, epoch, data.row_ids[rows], stream, neighbors.shape[1])
        return neighbors[rows, draw].long()

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the logits of the image head."""
        logits: Tensor = self.cluster_head_image(normalize(embeddings, dim=1))
        return logits


class TrainingFreeTAC(FittedMethod):
    """Spherical k-means on the normalized concatenation [v ; t̃]. A new image is paired with the kept nouns first."""

    name = "tac"
    text = "required"
    Config = TACConfig
    config: TACConfig
    centers: Tensor
    kept_nouns: Tensor

    def __init__(self, config: TACConfig, dim: int, n_clusters: int, n_rows: int, seed: int) -> None:
        super().__init__(config, dim, n_clusters, n_rows, seed)
        self.register_buffer("centers", torch.zeros(n_clusters, 2 * dim))
        self.register_buffer("kept_nouns", torch.zeros(0, dim))

    @classmethod
    def space(cls, config: MethodConfig) -> SemanticSpace:
        """Return TAC's semantic space with the constants of the configuration."""
        return _space(config)

    def fit(self, data: TrainingData) -> dict[str, float]:
        """Fit the centers, [C, 2d] unit rows, store the kept nouns, and return the mean cosine and the number of iterations."""
        if data.counterparts is None or data.nouns is None:
            raise ConfigError("method: tac needs nouns; give a `vocabulary`")
        self.kept_nouns = data.nouns.float()
        result = kmeans(data.side_by_side(), self.n_clusters, seed=self.seed, restarts=self.config.restarts)
        self.centers.copy_(result.centers)
        return {"mean_cosine": result.objective, "iterations": float(result.iterations)}

    def explain(self, facts: Mapping[str, float]) -> str:
        """Say how well the centers fit."""
        return f"After {facts['iterations']:.0f} iterations, the mean cosine of an image and its counterpart, side by side, to their center is {facts['mean_cosine']:.3f}."

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the state. Only the state tells the number of kept nouns, so their buffer takes its size from it."""
        self.kept_nouns = state_dict["kept_nouns"].clone()
        return super().load_state_dict(state_dict, strict, assign)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the cosines of image and counterpart, side by side, to the centers, divided by the temperature."""
        paired = self.space(self.config).pair(embeddings, self.kept_nouns)
        joined = side_by_side(normalize(embeddings, dim=1), paired)
        return joined @ self.centers.T / self.config.assignment_temperature


def _space(config: MethodConfig) -> SemanticSpace:
    assert isinstance(config, TACHeadsConfig)
    return TACSpace(
        images_per_center=config.images_per_center,
        centers_per_cluster=config.centers_per_cluster,
        nouns_per_center=config.nouns_per_center,
        temperature=config.text_temperature,
    )


METHOD = TAC
