"""From embeddings to clusters: the one place where they meet the heads, for batch and serving alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from raycluster.clustering.novelty import Novelty
from raycluster.methods.base import Method


@dataclass(frozen=True)
class Predictions:
    """What the model says of n pictures; rows whose status is not `ok` hold cluster -1 and NaN."""

    cluster: np.ndarray
    """int32 [n]."""
    name: list[str | None]
    """Name of the cluster."""
    confidence: np.ndarray
    """float32 [n], the largest probability."""
    margin: np.ndarray
    """float32 [n], largest minus second largest probability."""
    runner_up: np.ndarray
    """int32 [n], the second most probable cluster."""
    outlier: np.ndarray
    """bool [n], whether the picture is unlike anything the model was trained on; False where the status is not `ok`."""
    status: list[str]
    """`ok`, or why there is no prediction (the statuses of the manifest)."""
    error: list[str | None]
    """The reason in words where the status is not `ok`."""


def probabilities(method: Method, embeddings: np.ndarray) -> torch.Tensor:
    """[n, d] embeddings as the encoder gives them → [n, C] float32 probabilities.

    The one place where embeddings meet the heads, for batch and serving alike: float16 first, as the table stores them.
    """
    return method.predict(_rounded(embeddings).to(next(iter(method.state_dict().values())).device)).cpu()


def outliers(novelty: Novelty, embeddings: np.ndarray) -> np.ndarray:
    """[n, d] embeddings as the encoder gives them → bool [n]: unlike anything the model was trained on.

    Rounded as in :func:`probabilities`, and likewise the same for batch and serving.
    """
    return novelty.flags(_rounded(embeddings).to(novelty.rows.device)).cpu().numpy()


def _rounded(embeddings: np.ndarray) -> torch.Tensor:
    # A copy: tables hand out read-only arrays, of which torch would warn.
    return torch.from_numpy(np.array(embeddings, dtype=np.float16, order="C")).float()


def top_two(p: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """[n, C] probabilities → cluster int32, confidence float32, margin float32, runner-up int32, each [n]."""
    values, indices = p.topk(2, dim=1)
    clusters, confidence = indices.to(torch.int32).numpy(), values.numpy()
    return clusters[:, 0], confidence[:, 0], confidence[:, 0] - confidence[:, 1], clusters[:, 1]
