"""Names for clusters, from the nouns that describe them best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.clustering.matching import full_matching

NOUNS = 5
"""Number of nouns that describe a cluster."""
TEMPERATURE = 0.03
CANDIDATES = 50
"""Smallest number of nouns that are considered for the name of a cluster."""
PAIRS = 1_000_000
"""Number of pairs of a cluster and a noun that are considered. Where they suffice, C nouns are considered for each of C clusters: the other
clusters cannot take all of these, so that the matching is the best one with all nouns."""
VOTES_BYTES = 2**30
"""Bytes of the votes that are held at once, float32: those for some clusters and all nouns."""
SCORES_BYTES = 2**27
"""Bytes of a matrix of some images or clusters and all nouns, float32. A few such matrices are held at once."""


@dataclass(frozen=True)
class Candidates:
    """The K nouns that describe each of C clusters best, the best first."""

    affinity: np.ndarray
    """float32 [C, K]; −∞ for an empty cluster."""
    nouns: np.ndarray
    """int64 [C, K]: their indices."""


def best_nouns(images: Tensor, clusters: Tensor, nouns: Tensor, n_clusters: int) -> Candidates:
    """Return the nouns with the highest affinity to each cluster.

    `images` [N, d], any scale; `clusters`: int64 [N]; `nouns`: float32 [M, d] unit rows, on the same device. Every image spreads one vote
    over the nouns, softmax(v·t / 0.03). The affinity is log P(noun | cluster) − ½ log P(noun). With a whole log P(noun), the pointwise
    mutual information, rare nouns would win; without this term a noun close to all pictures would name every cluster.

    P(noun) needs the votes of all images. Where the votes for all clusters and nouns are more than `VOTES_BYTES`, they are computed twice,
    some clusters at a time: once for P(noun), and once for the affinity. Memory beside the images and the nouns is about 1.7 GiB at most.
    """
    considered = min(len(nouns), max(CANDIDATES, min(n_clusters, PAIRS // n_clusters)))
    block = max(1, VOTES_BYTES // (4 * max(1, len(nouns))))
    sizes, order = torch.bincount(clusters, minlength=n_clusters), torch.argsort(clusters, stable=True)
    ends = [0, *sizes.cumsum(0).tolist()]

    def votes(first: int) -> Tensor:
        last = min(first + block, n_clusters)
        return _votes(images, clusters, nouns, order[ends[first] : ends[last]], first, last - first)

    firsts = range(0, n_clusters, block)
    whole = votes(0) if len(firsts) == 1 else None
    total = torch.stack([_total(votes(first) if whole is None else whole) for first in firsts]).sum(dim=0)
    prior = 0.5 * (total / len(images) + 1e-12).log()
    affinity, places = (torch.empty(n_clusters, considered, dtype=kind) for kind in (torch.float32, torch.int64))
    for first in firsts:
        some = slice(first, first + block)
        _best(votes(first) if whole is None else whole, sizes[some], prior, affinity[some], places[some])
    return Candidates(affinity.numpy(), places.numpy())


def _total(votes: Tensor) -> Tensor:
    """Return the votes of all clusters together, float64 [M]. Some clusters at a time, because torch copies what it sums as float64."""
    total = torch.zeros(votes.shape[1], dtype=torch.float64, device=votes.device)
    for some in _chunks(votes, 8 * votes.shape[1]):
        total += some.double().sum(dim=0)
    return total


def _best(votes: Tensor, sizes: Tensor, prior: Tensor, best: Tensor, places: Tensor) -> None:
    """Fill in the affinities and the indices of the best nouns of some clusters, both [clusters, K] on the CPU.

    `votes` [clusters, M] and `sizes` [clusters] are theirs. The results have their place before, because small tensors that stay between
    large ones that go would break up the memory.
    """
    # The affinities are float64, and several steps of their computation are held at once.
    parts = (_chunks(each, 8 * votes.shape[1]) for each in (votes, sizes.unsqueeze(1), best, places))
    for part, size, values, indices in zip(*parts, strict=True):
        affinity = ((part.double() / size.clamp_min(1) + 1e-12).log() - prior).where(size > 0, -torch.inf)
        for found, target in zip(_highest(affinity.float(), best.shape[1]), (values, indices), strict=True):
            target.copy_(found)


def _votes(images: Tensor, clusters: Tensor, nouns: Tensor, rows: Tensor, first: int, count: int) -> Tensor:
    """Return the sums of the votes of the images in each of `count` clusters, float32 [count, M].

    `rows`: the positions of these images, in the order of the clusters. They are summed in two steps, because a float32 that has grown by a
    hundred thousand small votes, one after the other, is not exact.
    """
    votes = torch.zeros(count, len(nouns), device=images.device)
    for some in _chunks(rows, len(nouns)):
        own, place = clusters[some].unique_consecutive(return_inverse=True)
        scores = normalize(images[some].float(), dim=1) @ nouns.T / TEMPERATURE
        votes[own - first] += scores.new_zeros(len(own), len(nouns)).index_add_(0, place, scores.softmax(dim=1))
    return votes


def _chunks(values: Tensor, width: int) -> tuple[Tensor, ...]:
    """Split values by their first dimension, so that each part, with so many columns of float32, has at most `SCORES_BYTES`."""
    return values.split(max(1, SCORES_BYTES // (4 * max(1, width))))


def _highest(affinity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest values of each row and their places, both [rows, k], the highest first, and of equal ones the first."""
    values, places = affinity.topk(k, dim=1)
    places = places.sort(dim=1).values
    values, order = affinity.gather(1, places).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, order)


def unnamed(n_clusters: int) -> list[dict[str, Any]]:
    """Return `{name, nouns}` for clusters that are named by their numbers."""
    return [{"name": f"cluster {cluster}", "nouns": []} for cluster in range(n_clusters)]


def name_clusters(candidates: Candidates, nouns: list[str]) -> list[dict[str, Any]]:
    """Give each cluster a name of its own, so that as many as possible have one, with the largest total affinity.

    Returns `{name, nouns}` for each cluster. An empty cluster is named by its number, and so is one of whose nouns none is left.
    """
    result = unnamed(len(candidates.nouns))
    used = np.flatnonzero(np.isfinite(candidates.affinity).all(axis=1))
    if not nouns or not len(used):
        return result
    best = candidates.nouns[used]
    for cluster, noun, known in zip(used, _match(candidates.affinity[used], best), best, strict=True):
        if noun >= 0:
            others = [nouns[index] for index in known[:NOUNS] if index != noun]
            result[cluster] = {"name": nouns[noun], "nouns": [nouns[noun], *others][:NOUNS]}
    return result


def _match(affinity: np.ndarray, nouns: np.ndarray) -> np.ndarray:
    """Return the noun of each cluster in the one-to-one matching with the largest total affinity, int64 [C]; −1 where none is left.

    `affinity` and `nouns`: [C, K], as in :class:`Candidates`. A dense matching of 10,000 clusters with all nouns would take gigabytes.
    """
    n, k = affinity.shape
    known, columns = np.unique(nouns, return_inverse=True)
    # Only costs above zero are edges of the graph.
    costs = 1.0 + affinity.max().astype(np.float64) - affinity
    # Each cluster may also stay without a noun. That costs more than all other clusters together can gain by it.
    nothing = np.full(n, n * costs.max())
    data = np.concatenate([costs, nothing[:, None]], axis=1)
    places = np.concatenate([columns.reshape(n, k), len(known) + np.arange(n)[:, None]], axis=1)
    graph = csr_array((data.ravel(), places.ravel(), np.arange(n + 1) * (k + 1)), shape=(n, len(known) + n))
    matched = full_matching(graph)[1]
    return np.where(matched < len(known), known[np.minimum(matched, len(known) - 1)], -1)
