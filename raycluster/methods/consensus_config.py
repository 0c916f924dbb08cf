"""The constants of the method `consensus`, and the sizes from which it takes a shortcut.

A shortcut leaves out work that does not show in the labels; with all of them the time grows as N·C. What they cost in accuracy is measured
by `tests/benchmarks/consensus.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from pydantic import ConfigDict, Field

from raycluster.config import MethodConfig
from raycluster.methods.base import BY_PROFILE

ROWS_A_CLUSTER, LEAST_ROWS = 200, 20_000
"""Images a cluster that the method is fitted on, and least number of images. With 100 a cluster, ACC is the same and NMI 0.1 point lower."""


class ConsensusConfig(MethodConfig):
    """Constants of the consensus."""

    model_config = ConfigDict(extra="forbid")

    train_sample: int = Field(default=BY_PROFILE, ge=2)
    """With more images than this, it is fitted on a seeded sample of this size. Default: 200 images a cluster, but at least 20,000."""
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


def default_sample(n_clusters: int) -> int:
    """Return the default of `train_sample`: 200 images a cluster, but at least 20,000."""
    return max(LEAST_ROWS, ROWS_A_CLUSTER * n_clusters)


@dataclass(frozen=True)
class Shortcuts:
    """Sizes that the work is limited to; below them nothing is left out."""

    metric_queries: int = 8192
    """Images whose neighbors make the metric, and …"""
    metric_database: int = 32_768
    """… images among which these neighbors are searched."""
    dims: int = 384
    """Principal directions of the whitened images that are kept."""
    text_dims: int = 192
    """Principal directions of the whitened text counterparts that are kept."""
    exact_rows: int = 10_000
    """Images up to which the neighbor search is exact.

    One search takes 0.6 CPU seconds for 6,000 images either way, 1.3 for 10,000 (in cells 0.9), and 4.1 for 20,000 (in cells 1.7).
    """
    candidates: int = 4000
    """Images that an image is compared with in the search: 20 mean clusters of the default sample."""
    nouns: int = 512
    """Nouns that an image is compared with: those nearest to the center of its cell."""
    fine_rows: int = 16
    """Images that the fine k-means runs on, for each center."""
    split_above: int = 1000
    """Centers of the fine k-means above which small clusters are found in two levels."""
    last_rows: int = 64
    """Images that the last Lloyd steps of each vote run on, for each cluster. Those of the refinements run on all images."""


SHORTCUTS = Shortcuts()
NO_SHORTCUTS = Shortcuts(**{field.name: 2**40 for field in fields(Shortcuts)})
"""Nothing is left out: the reference that the shortcuts are measured against."""
