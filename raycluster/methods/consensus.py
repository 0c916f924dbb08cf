"""The method `consensus`, our own: neighbor-whitened consensus.

It has no epochs and no losses. Its constants follow from the numbers of images and clusters.

The difference between two neighboring images is mostly unrelated to what they show. Whitening by the covariance of such differences
gives the rest of the embedding more weight, and beats the published methods on most sets without any text. Nouns then help as voters:
each view of images or of images with text is clustered separately, several times, and the majority of these labelings decides. The
result is refined in image space alone. So a vocabulary that lacks the classes does little harm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from raycluster.clustering.kmeans import kmeans
from raycluster.clustering.neighbors import nearest_neighbors
from raycluster.clustering.voting import agreement, vote
from raycluster.clustering.ward import ward_kmeans
from raycluster.clustering.whitening import (
    NeighborSearch,
    class_means,
    neighbor_whitened,
    pair_covariance,
    smooth,
    whitening,
    within_covariance,
)
from raycluster.config import MethodConfig
from raycluster.methods.base import JOINED_ROWS, FittedMethod, TrainingData
from raycluster.randomness import sampled
from raycluster.semantics.pairing import nouns_of_centers, text_counterparts


class ConsensusConfig(MethodConfig):
    """Constants of the consensus."""

    model_config = ConfigDict(extra="forbid")

    train_sample: int = Field(default=200_000, ge=2)
    """With more images than this, it is fitted on a seeded sample of this size, because the cost of its neighbor searches is quadratic."""
    neighbors: int | None = Field(default=None, ge=1)
    """Neighbors of an image. Default: a quarter of a mean cluster, from 4 to 50."""
    shrinkage: float = Field(default=0.3, gt=0)
    """λ: share of the mean eigenvalue that is added to all eigenvalues before whitening."""
    rounds: int = Field(default=2, ge=1)
    """How often the neighbors are searched and the images whitened by the differences between neighbors."""
    smoothing_steps: int = Field(default=2, ge=0)
    """How often each image is drawn towards its neighbors before k-means."""
    smoothing_share: float = Field(default=0.5, gt=0, le=1)
    """Share of itself that an image keeps in a smoothing step."""
    text_weight: float = Field(default=0.5, ge=0)
    """Weight of the text part in the two views with text; 0 leaves text out. Raise it if the classes are common nouns."""
    nouns_per_center: int = Field(default=5, ge=1)
    """First view with text, as in TAC: number of nouns that each semantic center keeps."""
    text_temperature: float = Field(default=0.005, gt=0)
    """First view with text: temperature τ̃ of the text counterparts made of the kept nouns."""
    noun_temperature: float = Field(default=0.03, gt=0)
    """Second view with text: temperature of the text counterparts made of all nouns; images and nouns are centered first."""
    labelings: int = Field(default=3, ge=1)
    """Number of labelings of each view. Each is a run of k-means from another seed, and has one vote."""
    refinements: int = Field(default=3, ge=1)
    """How often images are whitened by the differences within clusters, and clustered again from the clusters' means."""
    temperature: float = Field(default=0.05, gt=0)
    """Probabilities are softmax(cosine to the centers / temperature) in the last whitened space."""


DEFAULT = ConsensusConfig(name="consensus")


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

    They are the numbers of views and votes, how far votes agree (normalized mutual information, mean over pairs), and
    `nearest_own_center`, the share of images nearest to the center of their own cluster.
    """


def consensus(
    images: Tensor,
    nouns: Tensor | None,
    n_clusters: int,
    seed: int,
    config: ConsensusConfig,
    search: NeighborSearch = nearest_neighbors,
) -> Consensus:
    """Cluster unit rows [N, d] float32, with the help of nouns, unit rows [M, d], if there are any. Deterministic for a given `seed`."""
    k = config.neighbors or neighbor_count(len(images), n_clusters)
    mean = images.mean(dim=0)
    centered = images - mean
    whitened, neighbors = neighbor_whitened(centered, k, config.shrinkage, config.rounds, search)
    votes, views = [], 0
    for view in _views(images, whitened, neighbors, nouns, n_clusters, seed, config, search):
        votes += [ward_kmeans(view, n_clusters, seed=seed * 100 + run) for run in range(config.labelings)]
        views += 1
    agree = agreement(votes)
    labels = vote(votes, int(agree.sum(axis=1).argmax()), n_clusters)
    for _ in range(config.refinements):
        space = whitening(centered, within_covariance(centered, labels, n_clusters), config.shrinkage)
        whitened = normalize(centered @ space, dim=1)
        smoothed = smooth(whitened, search(whitened, k), config.smoothing_steps, config.smoothing_share)
        start = normalize(class_means(smoothed, labels, n_clusters), dim=1)
        labels = kmeans(smoothed, n_clusters, seed=seed, start=start).labels
    centers = normalize(class_means(whitened, labels, n_clusters), dim=1)
    own = (whitened @ centers.T).argmax(dim=1) == labels
    facts = {**_facts(agree, views), "nearest_own_center": float(own.double().mean())}
    return Consensus(labels, mean, space, centers, facts)


def neighbor_count(n_images: int, n_clusters: int) -> int:
    """Return the default number of neighbors: a quarter of a mean cluster, from 4 to 50."""
    return min(50, max(4, n_images // (4 * n_clusters)))


def _views(
    images: Tensor,
    whitened: Tensor,
    neighbors: Tensor,
    nouns: Tensor | None,
    n_clusters: int,
    seed: int,
    config: ConsensusConfig,
    search: NeighborSearch,
) -> Iterator[Tensor]:
    """Yield the views to be clustered, unit rows [N, …].

    The first view is the images. Then comes, for each of the two kinds of text counterpart, images and counterparts side by side.
    """

    def smoothed(view: Tensor, near: Tensor) -> Tensor:
        return smooth(view, near, config.smoothing_steps, config.smoothing_share)

    yield smoothed(whitened, neighbors)
    if nouns is None or not config.text_weight:
        return
    averaged = smooth(images, neighbors, steps=1, share=0.5)
    for text in (
        _selected_counterparts(averaged, nouns, n_clusters, seed, config),
        text_counterparts(_centered(averaged), _centered(nouns), config.noun_temperature),
    ):
        text = _centered(text)
        # Whiten by the differences between image neighbors, so that directions in which the text of neighbors varies shrink.
        text = normalize(text @ whitening(text, pair_covariance(text, neighbors), config.shrinkage), dim=1)
        view = normalize(torch.cat([whitened, config.text_weight * text], dim=1), dim=1)
        yield smoothed(view, search(view, neighbors.shape[1]))


def _selected_counterparts(
    images: Tensor, nouns: Tensor, n_clusters: int, seed: int, config: ConsensusConfig
) -> Tensor:
    """Return TAC's text counterparts.

    There is one semantic center for every 300 images or three for every cluster, whichever are more, but at most one for every three
    images.
    """
    count = max(1, min(round(max(len(images) / 300, 3 * n_clusters)), len(images) // 3))
    kept = nouns_of_centers(kmeans(images, count, seed=seed).centers, nouns, config.nouns_per_center)
    return text_counterparts(images, nouns[kept], config.text_temperature)


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


class ConsensusMethod(FittedMethod):
    """Whitening and cluster centers in the form of SEIC's image head: Linear(d, d), normalized, Linear(d, C)."""

    name = "consensus"
    text = "optional"
    Config = ConsensusConfig
    image_head = ("image_projection", "image_clustering")
    config: ConsensusConfig

    def __init__(self, config: ConsensusConfig, dim: int, n_clusters: int, n_rows: int, seed: int) -> None:
        super().__init__(config, dim, n_clusters, n_rows, seed)
        # `fit` sets these weights. `skip_init` draws no random start, which would advance torch's global generator.
        self.image_projection = nn.utils.skip_init(nn.Linear, dim, dim)
        self.image_clustering = nn.utils.skip_init(nn.Linear, dim, n_clusters, bias=False)

    @classmethod
    def wants_vocabulary(cls, config: MethodConfig) -> bool:
        """Return True: the method selects among all nouns itself, after it has averaged images over their neighbors."""
        return True

    @torch.no_grad()
    def fit(self, data: TrainingData, search: NeighborSearch = nearest_neighbors) -> dict[str, float]:
        """Fit whitening and centers, and return the facts of :class:`Consensus`."""
        rows = torch.arange(len(data.images), device=data.images.device)
        found = consensus(data.unit_images(rows), data.vocabulary, self.n_clusters, self.seed, self.config, search)
        self.image_projection.weight.copy_(found.whitening.T)
        self.image_projection.bias.copy_(-found.mean @ found.whitening)
        self.image_clustering.weight.copy_(found.centers / self.config.temperature)
        return found.facts

    def explain(self, facts: Mapping[str, float]) -> str:
        """Say which views voted, and how far they agree."""
        words = f"{facts['votes']:.0f} labelings voted, {facts['votes'] / facts['views']:.0f} of each view: the images"
        if facts["views"] == 1:
            words += (
                " alone, because there are no nouns" if self.config.text_weight else " alone, because text_weight is 0"
            )
        else:
            words += ", the images with the nouns chosen for groups of images, and the images with all nouns"
        pairs = {
            "agreement_within_views": "labelings of one view",
            "agreement_image_text": "labelings of images alone and of images with text",
            "agreement_text_text": "labelings of the two views with text",
        }
        agree = [f"{facts[key]:.2f} between {words}" for key, words in pairs.items() if key in facts]
        if agree:
            words += f". Their agreement (1: the same clusters; 0: unrelated) is {', '.join(agree)}"
        return (
            f"{words}. {facts['nearest_own_center']:.1%} of the images are nearest to the center of their own cluster."
        )

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the cosines to the centers in the last whitened space, divided by the temperature."""
        whitened = normalize(self.image_projection(normalize(embeddings, dim=1)), dim=1)
        logits: Tensor = self.image_clustering(whitened)
        return logits


def consensus_clusters(
    data: TrainingData,
    n_clusters: int,
    seed: int,
    search: NeighborSearch = nearest_neighbors,
    config: ConsensusConfig = DEFAULT,
) -> Tensor:
    """Return the clusters [N] int64 of all rows, towards which other methods draw their heads.

    The method is fitted on at most `train_sample` rows. Its views with text need `data.vocabulary`.
    """
    ids = data.row_ids.cpu().numpy()
    rows = torch.from_numpy(np.flatnonzero(np.isin(ids, sampled(ids, config.train_sample, seed))))
    part = replace(data, row_ids=data.row_ids[rows], images=data.images[rows], counterparts=None, nouns=None)
    method = ConsensusMethod(config, data.images.shape[1], n_clusters, len(rows), seed).to(data.images.device)
    method.fit(part, search)
    return torch.cat([method.predict(images).argmax(dim=1) for images in data.images.split(JOINED_ROWS)])


METHOD = ConsensusMethod
