"""The step from embeddings to clusters, which batch runs and serving share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from raycluster.methods.base import Method
from raycluster.model.novelty import Novelty


@dataclass(frozen=True)
class Predictions:
    """The predictions for n pictures. Where the status is not `ok`, clusters are -1, and confidence and margin are NaN."""

    cluster: np.ndarray
    """int32 [n], the most probable cluster."""
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
    """`ok`, or the status that says why there is no prediction."""
    error: list[str | None]
    """The reason in words where the status is not `ok`."""


def probabilities(method: Method, embeddings: np.ndarray) -> torch.Tensor:
    """Return the probabilities, float32 [n, C], of embeddings [n, d] as the encoder gives them.

    Batch runs and serving both predict through this function. It first rounds embeddings to float16, as the table stores them, so
    that both give the same.
    """
    return method.predict(_rounded(embeddings).to(next(iter(method.state_dict().values())).device)).cpu()


def outliers(novelty: Novelty, embeddings: np.ndarray) -> np.ndarray:
    """Return bool [n] for embeddings [n, d], as the encoder gives them: whether each is unlike anything the model was trained on.

    They are rounded as in :func:`probabilities`, so that batch runs and serving give the same.
    """
    return novelty.flags(_rounded(embeddings).to(novelty.rows.device)).cpu().numpy()


def _rounded(embeddings: np.ndarray) -> torch.Tensor:
    # Copy, because tables return read-only arrays, and torch warns about those.
    return torch.from_numpy(np.array(embeddings, dtype=np.float16, order="C")).float()


def top_two(p: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return cluster int32, confidence float32, margin float32 and runner-up int32, each [n], of probabilities [n, C]."""
    values, indices = p.topk(2, dim=1)
    clusters, confidence = indices.to(torch.int32).numpy(), values.numpy()
    return clusters[:, 0], confidence[:, 0], confidence[:, 0] - confidence[:, 1], clusters[:, 1]
