"""The text side of each image: which nouns of the vocabulary to keep, and the text counterpart made of them.

A :class:`SemanticSpace` does both in the way of one paper. TAC's, the default, is in this file; the others are in their methods' files.
Source: Image Clustering with External Guidance (TAC), ICML 2024, arXiv 2310.11989, section 3.2 and the authors' code.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.clustering.cells import Cells
from raycluster.clustering.kmeans import kmeans
from raycluster.section import Section

CHUNK_BYTES = 2**28
"""Bytes of the largest similarity matrix that is held at once."""


class SemanticSpace(Section):
    """The way that nouns are kept and paired with images. Its fields are part of the semantics stage's recipe."""

    kind: str
    """Short name of the paper."""

    @abstractmethod
    def select(self, images: Tensor, nouns: Tensor, n_clusters: int, seed: int) -> Tensor:
        """Return the indices of the kept nouns, ascending, int64. `images` [N, d] as the encoder gives them, `nouns` [M, d] unit rows."""

    @abstractmethod
    def pair(self, images: Tensor, kept: Tensor) -> Tensor:
        """Return the text counterparts of the images, float32 unit rows [N, d]; `kept` [M, d] unit rows."""


class TACSpace(SemanticSpace):
    """The space of TAC and DXMC: each semantic center keeps its most probable nouns, and all kept nouns make the counterpart."""

    kind: str = "tac"
    images_per_center: int = 300
    centers_per_cluster: int = 3
    nouns_per_center: int = 5
    temperature: float = 0.005

    def select(self, images: Tensor, nouns: Tensor, n_clusters: int, seed: int) -> Tensor:
        """Group the images into semantic centers by spherical k-means, and return their nouns (:func:`nouns_of_centers`)."""
        count = semantic_center_count(len(images), n_clusters, self.images_per_center, self.centers_per_cluster)
        return nouns_of_centers(kmeans(images, count, seed=seed).centers, nouns, self.nouns_per_center)

    def pair(self, images: Tensor, kept: Tensor) -> Tensor:
        """Return the :func:`text_counterparts` of the images."""
        return text_counterparts(normalize(images.float(), dim=1), kept, self.temperature)


def semantic_center_count(
    n_images: int, n_clusters: int, images_per_center: int = 300, centers_per_cluster: int = 3
) -> int:
    """Return the number of semantic centers: one for 300 images where clusters are larger than that, else three a cluster (TAC)."""
    large = n_images / n_clusters > images_per_center
    return min(n_images, round(n_images / images_per_center) if large else centers_per_cluster * n_clusters)


def nouns_of_centers(centers: Tensor, nouns: Tensor, per_center: int) -> Tensor:
    """Return the nouns that the centers keep: each noun goes to its most probable center, which keeps its most probable nouns.

    `centers` [K, d], `nouns` [M, d]: float32 unit rows; p(center | noun) is a softmax over the centers without temperature. Returns
    the indices of all kept nouns, ascending, int64. In half precision 2.5 to 5 % of the kept nouns would change.
    """
    parts = [(chunk @ centers.T).softmax(dim=1).max(dim=1) for chunk in chunks(nouns, len(centers))]
    probability, center = torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])
    # Sort by center, and within a center by falling probability. The rank of a noun is then its distance to the start of its group.
    order = torch.argsort(probability, descending=True, stable=True)
    order = order[torch.argsort(center[order], stable=True)]
    counts = torch.bincount(center, minlength=len(centers))
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(nouns), device=nouns.device) - starts[center[order]]
    return order[rank < per_center].sort().values


def text_counterparts(images: Tensor, kept: Tensor, temperature: float) -> Tensor:
    """Return the text counterpart of each image: the softmax-weighted mean of all kept nouns, normalized.

    `images` [N, d], `kept` [M, d]: float32 unit rows; the weights are softmax(v·t / temperature). Returns [N, d] float32 unit rows.
    """
    parts = [(chunk @ kept.T / temperature).softmax(dim=1) @ kept for chunk in chunks(images, len(kept))]
    return normalize(torch.cat(parts), dim=1)


def near_counterparts(images: Tensor, nouns: Tensor, temperature: float, cells: Cells, most: int) -> Tensor:
    """Return the :func:`text_counterparts` [N, d] of images [N, d], made only of the `most` nouns nearest to the center of the image's cell.

    Images of a cell are alike, and nouns far from all of them have no weight. With a vocabulary of 100,000 nouns, comparing every image
    with every noun would take most of the time of a clustering.
    """
    if most >= len(nouns):
        return text_counterparts(images, nouns, temperature)
    centers = chunks(cells.centers(images), len(nouns))
    near = torch.cat([(some @ nouns.T).topk(most, dim=1, sorted=False).indices for some in centers])
    paired, ordered = torch.empty_like(images), images[cells.order]
    for cell, rows in cells:
        paired[cells.order[rows]] = text_counterparts(ordered[rows], nouns[near[cell]], temperature)
    return paired


def chunks(rows: Tensor, width: int) -> tuple[Tensor, ...]:
    """Split `rows` so that the scores of each piece against `width` columns fit into CHUNK_BYTES."""
    return torch.split(rows, max(1, CHUNK_BYTES // (4 * width)))
