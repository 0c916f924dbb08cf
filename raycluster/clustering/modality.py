"""Does text help or hurt? A measure that needs no label: how well each modality's clusters explain the neighbors in the other."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raycluster.clustering.kmeans import kmeans
from raycluster.clustering.neighbors import nearest_neighbors

NEIGHBORS = 10
HELPS = 1.05
"""Above it text has helped; between its inverse and it nothing can be said; below text has hurt (wrong once in nine sets)."""


def text_asymmetry(images: np.ndarray, counterparts: np.ndarray, n_clusters: int, seed: int) -> float:
    """[I_v(text) / I_v(image)] / [I_t(image) / I_t(text)], dimensionless; above 1 text explains images better than images text.

    `images` and `counterparts` [n, d], any scale. I_g(m): mutual information, in nats, of the labels at the two ends of a neighbor
    edge in modality g (v: images, t: text), with labels by k-means on modality m alone. 1.0 where a modality shows no clusters.
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
    """Of the labels at both ends of the graph's edges [n, neighbors]."""
    pairs = (labels.unsqueeze(1) * k + labels[graph]).flatten()
    joint = torch.bincount(pairs, minlength=k * k).double().view(k, k)
    # An edge has no direction.
    joint = (joint + joint.T) / (2 * len(pairs))
    independent = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0, keepdim=True)
    used = joint > 0
    return float((joint[used] * (joint[used] / independent[used]).log()).sum())
