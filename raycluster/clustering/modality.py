"""Measure without labels whether text helps or hurts, by how well the clusters of each modality explain the neighbors in the other."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raycluster.clustering.kmeans import kmeans
from raycluster.clustering.neighbors import nearest_neighbors

NEIGHBORS = 10
HELPS = 1.05
"""Above this asymmetry text has helped, below its inverse text has hurt, and between them nothing can be said (wrong once in nine sets)."""


def text_asymmetry(images: np.ndarray, counterparts: np.ndarray, n_clusters: int, seed: int) -> float:
    """Return [I_v(text) / I_v(image)] / [I_t(image) / I_t(text)]. Above 1, text explains images better than images explain text.

    `images` and `counterparts` [n, d], any scale. I_g(m) is the mutual information, in nats, of the labels at the two ends of a neighbor
    edge in modality g (v: images, t: text), where the labels come from k-means on modality m alone. The result has no dimension. It is
    1.0 where a modality shows no clusters.
    """
    sides = [torch.from_numpy(np.array(side)) for side in (images, counterparts)]
    k = max(2, min(n_clusters, len(images) // 4))
    labels = [kmeans(side, k, seed=seed).labels for side in sides]
    graphs = [nearest_neighbors(side, NEIGHBORS).long() for side in sides]
    information = [[_mutual_information(label, graph, k) for label in labels] for graph in graphs]
    (image_image, image_text), (text_image, text_text) = information
    if min(image_image, text_image) < 1e-6 or text_text < 1e-6:
        return 1.0
    return (image_text / image_image) / (text_image / text_text)


def _mutual_information(labels: Tensor, graph: Tensor, k: int) -> float:
    """Return the mutual information, in nats, of the labels at the two ends of the graph's edges [n, neighbors]."""
    pairs = (labels.unsqueeze(1) * k + labels[graph]).flatten()
    joint = torch.bincount(pairs, minlength=k * k).double().view(k, k)
    # An edge has no direction, so both orders of its ends count.
    joint = (joint + joint.T) / (2 * len(pairs))
    independent = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0, keepdim=True)
    used = joint > 0
    return float((joint[used] * (joint[used] / independent[used]).log()).sum())
