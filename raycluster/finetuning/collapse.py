"""A guard that needs no labels: it decides whether fine-tuning has collapsed and its result is refused."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize

from raycluster.clustering.neighbors import nearest_neighbors
from raycluster.clustering.scores import NEIGHBORS, neighborhood_consistency, size_imbalance
from raycluster.config import FinetuneConfig


def measure(embeddings: np.ndarray, before: np.ndarray, after: np.ndarray, n_clusters: int) -> dict[str, float]:
    """Return the measures that the guard compares.

    `embeddings` [n, d]: embeddings of the encoder before tuning. Both clusterings are judged by these, so that their measures are
    comparable. `before`, `after` [n]: clusters before and after tuning.
    """
    neighbors = nearest_neighbors(normalize(torch.from_numpy(embeddings.astype(np.float32)), dim=1), NEIGHBORS)
    measures = {"agreement": float((before == after).mean())}
    for name, clusters in (("before", before), ("after", after)):
        sizes = np.bincount(clusters, minlength=n_clusters)
        measures |= {
            f"clusters_{name}": float((sizes > 0).sum()),
            f"consistency_{name}": neighborhood_consistency(neighbors, torch.from_numpy(clusters.astype(np.int64))),
            f"imbalance_{name}": size_imbalance(sizes),
        }
    return measures


def refusal(measures: dict[str, float], config: FinetuneConfig) -> str:
    """Return in words why the tuned encoder is refused; empty if it is accepted."""
    lost = 1 - measures["clusters_after"] / measures["clusters_before"]
    less = measures["consistency_before"] - measures["consistency_after"]
    more = measures["imbalance_after"] - measures["imbalance_before"]
    reasons = []
    if lost > config.max_lost_clusters:
        reasons.append(
            f"clusters in use fell from {measures['clusters_before']:.0f} to {measures['clusters_after']:.0f} "
            f"(finetune.max_lost_clusters {config.max_lost_clusters})"
        )
    if less > config.max_lost_consistency:
        reasons.append(
            f"neighborhood consistency fell from {measures['consistency_before']:.3f} to {measures['consistency_after']:.3f} "
            f"(finetune.max_lost_consistency {config.max_lost_consistency})"
        )
    if more > config.max_added_imbalance:
        reasons.append(
            f"size imbalance grew from {measures['imbalance_before']:.3f} to {measures['imbalance_after']:.3f} "
            f"(finetune.max_added_imbalance {config.max_added_imbalance})"
        )
    if not reasons:
        return ""
    return (
        f"fine-tuning has collapsed, so its result is not used and the model before fine-tuning stays: {'; '.join(reasons)}. "
        "Try fewer `finetune.epochs` or a lower `finetune.learning_rate`, or raise the bound in parentheses"
    )
