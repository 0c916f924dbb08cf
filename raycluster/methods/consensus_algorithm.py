"""The algorithm of the method `consensus`, as functions on tensors.

The difference between two neighboring images is mostly unrelated to what they show. Whitening by the covariance of such differences
gives the rest of the embedding more weight, and beats the published methods on most sets without any text. Nouns then help as voters:
each view of images or of images with text is clustered separately, several times, and the majority of these labelings decides. The
result is refined in image space alone. So a vocabulary that lacks the classes does little harm.

All steps after the metric happen in the principal directions of the whitened space, and neighbors are searched in cells of near images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.clustering.cells import Cells, find_neighbors, make_cells
from raycluster.clustering.voting import agreement, vote
from raycluster.clustering.ward import lloyd, ward_kmeans
from raycluster.clustering.whitening import (
    class_means,
    neighbor_whitening,
    pair_covariance,
    principal_directions,
    smooth,
    whitening,
    within_covariance,
)
from raycluster.methods.consensus_config import SHORTCUTS, ConsensusConfig, Shortcuts
from raycluster.semantics.pairing import near_counterparts, nouns_of_centers


@dataclass(frozen=True)
class Consensus:
    """A clustering of N images, and the space in which the nearest center gives the cluster of a new image."""

    labels: Tensor
    """[N] int64, the cluster of each image."""
    mean: Tensor
    """[d], the mean of the unit rows of the images."""
    whitening: Tensor
    """[d, d], the matrix W. The centers lie in the space of the unit rows of (x − mean) W."""
    centers: Tensor
    """[C, d] unit rows."""
    facts: dict[str, float]
    """Facts for the report.

    They are the number of images, the numbers of views and votes, how far votes agree (normalized mutual information, mean over pairs), and
    `nearest_own_center`, the share of images nearest to the center of their own cluster.
    """


@dataclass(frozen=True)
class _Settings:
    """What all steps of one clustering share."""

    n_clusters: int
    seed: int
    config: ConsensusConfig
    shortcuts: Shortcuts

    def search(self, x: Tensor, k: int, cells: Cells) -> Tensor:
        limits = self.shortcuts
        return find_neighbors(x, k, cells, exact_rows=limits.exact_rows, candidates=limits.candidates)

    def smooth(self, x: Tensor, neighbors: Tensor) -> Tensor:
        return smooth(x, neighbors, self.config.smoothing_steps, self.config.smoothing_share)

    def reduced(self, x: Tensor, dims: int) -> Tensor:
        """Return unit rows [N, r]: the principal directions of the rows [N, d]."""
        return normalize(x @ principal_directions(x, dims, seed=self.seed), dim=1)

    def labelings(self, view: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the labels and the fine labels, each [N], of each run of k-means."""
        limits = self.shortcuts
        return [
            ward_kmeans(
                view,
                self.n_clusters,
                seed=self.seed * 100 + run,
                fine_rows=limits.fine_rows,
                last_rows=limits.last_rows,
                split_above=limits.split_above,
            )
            for run in range(self.config.labelings)
        ]


def consensus(
    images: Tensor,
    nouns: Tensor | None,
    n_clusters: int,
    seed: int,
    config: ConsensusConfig,
    shortcuts: Shortcuts = SHORTCUTS,
) -> Consensus:
    """Cluster unit rows [N, d] float32, with the help of nouns, unit rows [M, d], if there are any. Deterministic for a given `seed`.

    Raises :class:`ConfigError` for fewer rows than clusters, and for rows with NaN or infinity.
    """
    settings = _Settings(n_clusters, seed, config, shortcuts)
    k = config.neighbors or neighbor_count(len(images), n_clusters)
    mean = images.mean(dim=0)
    centered = images - mean
    space = neighbor_whitening(
        centered,
        k,
        config.shrinkage,
        config.rounds,
        queries=shortcuts.metric_queries,
        database=shortcuts.metric_database,
        seed=seed,
    )
    whitened = settings.reduced(normalize(centered @ space, dim=1), shortcuts.dims)
    cells = make_cells(whitened, seed=seed)
    neighbors = settings.search(whitened, k, cells)
    labelings = settings.labelings(settings.smooth(whitened, neighbors))
    views = 1
    if nouns is not None and config.text_weight:
        fine = labelings[-1][1]
        for view in _text_views(images, whitened, neighbors, cells, fine, nouns, settings):
            labelings += settings.labelings(view)
            views += 1
    votes = [labels for labels, _ in labelings]
    agree = agreement(votes)
    labels = vote(votes, int(agree.sum(axis=1).argmax()), n_clusters)
    for _ in range(config.refinements):
        space = whitening(centered, within_covariance(centered, labels, n_clusters), config.shrinkage)
        whitened = normalize(centered @ space, dim=1)
        labels = _refined(settings.reduced(whitened, shortcuts.dims), labels, k, cells, settings)
    centers = normalize(class_means(whitened, labels, n_clusters), dim=1)
    own = (whitened @ centers.T).argmax(dim=1) == labels
    facts = {"images": float(len(images)), **_facts(agree, views), "nearest_own_center": float(own.double().mean())}
    return Consensus(labels, mean, space, centers, facts)


def neighbor_count(n_images: int, n_clusters: int) -> int:
    """Return the default number of neighbors: a quarter of a mean cluster, from 4 to 50."""
    return min(50, max(4, n_images // (4 * n_clusters)))


def _refined(whitened: Tensor, labels: Tensor, k: int, cells: Cells, settings: _Settings) -> Tensor:
    """Return the labels [N] of Lloyd steps that start from `labels`, on smoothed rows. The cells of the first metric still hold near rows."""
    smoothed = settings.smooth(whitened, settings.search(whitened, k, cells))
    return lloyd(smoothed, labels, settings.n_clusters, seed=settings.seed)


def _text_views(
    images: Tensor,
    whitened: Tensor,
    neighbors: Tensor,
    cells: Cells,
    fine: Tensor,
    nouns: Tensor,
    settings: _Settings,
) -> Iterator[Tensor]:
    """Yield the two views with text, smoothed unit rows [N, …]: images and one of two kinds of text counterpart, side by side.

    The first kind is made of the nouns that semantic centers keep, as in TAC; these centers are the means of the small clusters `fine` [N]
    of the image view. The second kind is made of all nouns; images and nouns are centered first.
    """
    config, limits = settings.config, settings.shortcuts
    averaged = smooth(images, neighbors, steps=1, share=0.5)
    centers = class_means(averaged, fine, int(fine.max()) + 1)
    centers = normalize(centers[centers.any(dim=1)], dim=1)
    kept = nouns[nouns_of_centers(centers, nouns, config.nouns_per_center)]
    makers: list[Callable[[], Tensor]] = [
        lambda: near_counterparts(averaged, kept, config.text_temperature, cells, limits.nouns),
        lambda: near_counterparts(_centered(averaged), _centered(nouns), config.noun_temperature, cells, limits.nouns),
    ]
    some = torch.randperm(len(images), generator=torch.Generator().manual_seed(settings.seed))
    some = some[: limits.metric_queries].to(images.device)
    for make in makers:
        text = _centered(make())
        # Whiten by the differences between image neighbors, so that directions in which the text of neighbors varies shrink.
        space = whitening(text, pair_covariance(text, neighbors[some], some), config.shrinkage)
        text = settings.reduced(normalize(text @ space, dim=1), limits.text_dims)
        view = normalize(torch.cat([whitened, config.text_weight * text], dim=1), dim=1)
        near = settings.search(view, neighbors.shape[1], make_cells(view, seed=settings.seed))
        yield settings.smooth(view, near)


def _centered(rows: Tensor) -> Tensor:
    return normalize(rows - rows.mean(dim=0), dim=1)


def _facts(agree: np.ndarray, views: int) -> dict[str, float]:
    """Return facts for the report. `agree`: agreement of all pairs of votes, [R, R]; the votes of one view are adjacent."""
    runs = len(agree) // views
    facts = {"views": float(views), "votes": float(len(agree))}
    same = np.kron(np.eye(views), np.ones((runs, runs))).astype(bool) & ~np.eye(len(agree), dtype=bool)
    if runs > 1:
        facts["agreement_within_views"] = float(agree[same].mean())
    if views > 1:
        image = np.arange(len(agree)) < runs
        facts["agreement_image_text"] = float(agree[np.ix_(image, ~image)].mean())
        facts["agreement_text_text"] = float(agree[runs : 2 * runs, 2 * runs :].mean())
    return facts
