"""Spherical k-means on the image embeddings: the baseline that every other method must beat."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import ConfigDict, Field
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.clustering.kmeans import kmeans
from raycluster.config import MethodConfig
from raycluster.methods.base import FittedMethod, TrainingData


class KMeansConfig(MethodConfig):
    """Constants of k-means."""

    model_config = ConfigDict(extra="forbid")

    restarts: int = Field(default=1, ge=1)
    """Number of runs from fresh seeds. The run with the largest mean cosine is kept."""
    max_iterations: int = Field(default=300, ge=1)
    """Most iterations of one run."""
    temperature: float = Field(default=0.05, gt=0)
    """Probabilities are softmax(cosine to the centers / temperature)."""


class KMeansMethod(FittedMethod):
    """Spherical k-means. Probabilities are a softmax over the cosines to the centers."""

    name = "kmeans"
    text = "none"
    Config = KMeansConfig
    config: KMeansConfig
    centers: Tensor

    def __init__(self, config: KMeansConfig, dim: int, n_clusters: int, n_rows: int, seed: int) -> None:
        super().__init__(config, dim, n_clusters, n_rows, seed)
        self.register_buffer("centers", torch.zeros(n_clusters, dim))

    def fit(self, data: TrainingData) -> dict[str, float]:
        """Fit the centers, [C, d] unit rows, and return the mean cosine and the number of iterations."""
        config = self.config
        result = kmeans(
            data.images,
            self.n_clusters,
            seed=self.seed,
            restarts=config.restarts,
            max_iterations=config.max_iterations,
        )
        self.centers.copy_(result.centers)
        return {"mean_cosine": result.objective, "iterations": float(result.iterations)}

    def explain(self, facts: Mapping[str, float]) -> str:
        """Say how well the centers fit."""
        return f"After {facts['iterations']:.0f} iterations, the mean cosine of an image to its center is {facts['mean_cosine']:.3f}."

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the cosines to the centers divided by the temperature."""
        return normalize(embeddings, dim=1) @ self.centers.T / self.config.temperature


METHOD = KMeansMethod
