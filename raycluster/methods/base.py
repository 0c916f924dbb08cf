"""What a clustering method is: its constants, its semantic space, how it is fitted or trained, how it predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import nll_loss, normalize

from raycluster.clustering.neighbors import nearest_neighbors
from raycluster.clustering.whitening import NeighborSearch
from raycluster.config import MethodConfig
from raycluster.semantics.pairing import SemanticSpace, TACSpace

BY_PROFILE: Any = None
"""Default of a constant that the profile's rule fills in when the numbers of images and clusters are known.

Such a constant is declared without None, for every method sees it filled in; pydantic does not check a default.
"""


JOINED_ROWS = 65_536
"""Rows brought to float32 at once."""


@dataclass(frozen=True)
class TrainingData:
    """The rows that heads are trained on, on one device."""

    row_ids: Tensor
    """[N] int64, ids in the manifest; counted randomness hangs on them."""
    images: Tensor
    """[N, d] as the encoder gives them, float16 as stored (or wider); not normalized."""
    counterparts: Tensor | None = None
    """[N, d], the unit text counterpart of each image; None for methods without a text side."""
    nouns: Tensor | None = None
    """[M, d] float32 unit rows, the kept nouns; None for methods without a text side."""
    vocabulary: Tensor | None = None
    """[V, d] float32 unit rows, all nouns; None for methods that do not want them, and where there are none."""
    consensus: Tensor | None = None
    """[N] int64, the house method's cluster of each row; None unless the training is to be guided by it."""

    def unit_images(self, rows: Tensor) -> Tensor:
        """Unit rows [b, d] of the images at these positions, in at least float32."""
        return _unit(self.images[rows])

    def unit_counterparts(self, rows: Tensor) -> Tensor:
        """Unit rows [b, d] of the counterparts at these positions, in at least float32."""
        assert self.counterparts is not None
        return _unit(self.counterparts[rows])

    def side_by_side(self) -> Tensor:
        """Unit rows [N, 2d] of image and counterpart, float16: a million of them in float32 would take 4 GB."""
        positions = torch.arange(len(self.images), device=self.images.device)
        return torch.cat([
            side_by_side(self.unit_images(rows), self.unit_counterparts(rows)).half()
            for rows in positions.split(JOINED_ROWS)
        ])  # fmt: skip


def side_by_side(images: Tensor, counterparts: Tensor) -> Tensor:
    """Unit rows [n, d] each → unit rows [n, 2d]: the space of TAC without training."""
    return normalize(torch.cat([images, counterparts], dim=1), dim=1)


def _unit(rows: Tensor) -> Tensor:
    return normalize(rows.float() if rows.dtype == torch.float16 else rows, dim=1)


@dataclass(frozen=True)
class NeighborGraph:
    """The neighbors a method wants of each training row."""

    space: Literal["images", "counterparts"]
    k: int
    metric: Literal["cosine", "euclidean"] = "cosine"
    include_self: bool = False


@dataclass(frozen=True)
class Schedule:
    """How long a training is."""

    batch_size: int
    """Rows of the global batch; the last, incomplete batch of an epoch is dropped (its rows differ from epoch to epoch)."""
    epochs: int
    steps_per_epoch: int


class TrainedConfig(MethodConfig):
    """Constants of every trained method."""

    model_config = ConfigDict(extra="forbid")

    learning_rate: float = Field(default=BY_PROFILE, gt=0)
    """Adam's rate, constant."""
    batch_size: int = Field(default=BY_PROFILE, ge=2)
    """Rows of the global batch."""
    epochs: int = Field(default=BY_PROFILE, ge=1)
    """Passes over the training rows."""
    init: Literal["own", "consensus"] = "own"
    """`consensus`: the heads are drawn towards the clusters of the house method, which is run first."""
    consensus_weight: float = Field(default=5.0, gt=0)
    """With `init: consensus`: weight of the cross-entropy with those clusters."""


class Method(nn.Module, ABC):
    """Base of every method. Its state dict holds all that prediction needs."""

    name: ClassVar[str]
    text: ClassVar[Literal["none", "optional", "required"]]
    """Whether nouns help the clustering; where they are required, a run without a vocabulary is refused."""
    Config: ClassVar[type[MethodConfig]]
    image_head: ClassVar[tuple[str, ...]] = ()
    """Names of the modules between embedding and logits, which fine-tuning the encoder trains along; none: it cannot."""

    def __init__(self, config: MethodConfig, dim: int, n_clusters: int, n_rows: int, seed: int) -> None:
        """`dim`: size d of an embedding; `n_rows`: number N of training rows, to which constants may be scaled."""
        super().__init__()
        self.config, self.dim, self.n_clusters, self.n_rows, self.seed = config, dim, n_clusters, n_rows, seed

    @classmethod
    def variant(cls, config: MethodConfig) -> type[Method]:
        """The class for this configuration, where a method has several (TAC with and without training)."""
        return cls

    @classmethod
    def space(cls, config: MethodConfig) -> SemanticSpace:
        """The nouns this method keeps and the text counterparts it makes of them."""
        return TACSpace()

    @classmethod
    def wants_vocabulary(cls, config: MethodConfig) -> bool:
        """Whether training looks at all nouns, not at the kept ones only."""
        return False

    @property
    def constants(self) -> dict[str, Any]:
        """The method's section of the configuration with every constant resolved, as plain data."""
        return self.config.model_dump(mode="json")

    @property
    def input_scale(self) -> float:
        """What embeddings are multiplied by before the heads; 1 for methods that normalize them."""
        return 1.0

    @torch.no_grad()
    def predict(self, embeddings: Tensor) -> Tensor:
        """[B, d] embeddings as the encoder gives them → [B, C] float32 cluster probabilities."""
        self.eval()
        return self.logits(embeddings.float()).softmax(dim=1)

    @abstractmethod
    def logits(self, embeddings: Tensor) -> Tensor:
        """[B, d] embeddings as the encoder gives them → [B, C], before the softmax; with gradient."""


class FittedMethod(Method):
    """A method that is fitted in one go by one process."""

    @abstractmethod
    def fit(self, data: TrainingData, search: NeighborSearch = nearest_neighbors) -> dict[str, float]:
        """Fit to the data; returns what there is to report. `search` finds neighbors, on one process or many."""

    @abstractmethod
    def explain(self, facts: Mapping[str, float]) -> str:
        """What :meth:`fit` returned, in sentences for the report."""


class TrainedMethod(Method):
    """A method whose heads are trained by gradient steps on any number of workers."""

    config: TrainedConfig

    def __init__(self, config: TrainedConfig, dim: int, n_clusters: int, n_rows: int, seed: int) -> None:
        rule = self.published if config.profile == "paper" else self.scaled
        filled = {key: value for key, value in rule(n_rows, n_clusters).items() if getattr(config, key) is None}
        super().__init__(config.model_copy(update=filled), dim, n_clusters, n_rows, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.build_heads()

    @staticmethod
    @abstractmethod
    def published(n_rows: int, n_clusters: int) -> dict[str, Any]:
        """The authors' constants: the profile `paper`."""

    @staticmethod
    @abstractmethod
    def scaled(n_rows: int, n_clusters: int) -> dict[str, Any]:
        """Constants for any number of images and clusters (:mod:`raycluster.methods.scaling`): the profile `default`."""

    @abstractmethod
    def build_heads(self) -> None:
        """Make the parameters; the random state is seeded."""

    @classmethod
    def wants_vocabulary(cls, config: MethodConfig) -> bool:
        """For the house method, where that guides the training."""
        return isinstance(config, TrainedConfig) and config.init == "consensus"

    def schedule(self) -> Schedule:
        """Whole batches only; with fewer rows than a batch there is one batch of all."""
        batch = min(self.config.batch_size, self.n_rows)
        return Schedule(batch, self.config.epochs, self.n_rows // batch)

    def graphs(self) -> dict[str, NeighborGraph]:
        """Neighbors that are found once, before training, and shared by all workers."""
        return {}

    def setup(self, data: TrainingData) -> None:
        """Set parameters and buffers from the data before the first step; the first worker's result counts for all."""
        return

    def start_epoch(self, data: TrainingData) -> None:
        """Update buffers before an epoch (SIC's pseudo-labels); the first worker's result counts for all."""
        return

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimizer over the trainable parameters."""

    @abstractmethod
    def forward_batch(
        self, data: TrainingData, neighbors: Mapping[str, Tensor], rows: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        """Outputs [b, …] for the positions `rows` [b] of this worker's share; `neighbors`: int32 [N, k] for each graph."""

    @abstractmethod
    def log_assignments(self, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Of each modality's cluster head the logarithms of its assignments of the rows, [B, C]."""

    def guided_loss(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """:meth:`loss`, and with `init: consensus` the cross-entropy with the clusters `outputs["consensus"]` [B]."""
        total, terms = self.loss(outputs)
        if self.config.init == "own":
            return total, terms
        heads = self.log_assignments(outputs)
        guidance = torch.stack([nll_loss(head, outputs["consensus"]) for head in heads]).mean()
        total = total + self.config.consensus_weight * guidance
        return total, {**terms, **detached(loss=total, consensus=guidance)}

    @abstractmethod
    def loss(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the global batch from the gathered outputs [B, …], and its terms to report, detached scalars."""

    def after_step(self, outputs: Mapping[str, Tensor]) -> None:
        """Update buffers from the gathered outputs after the optimizer's step (SEIC's history)."""
        return


def detached(**terms: Tensor) -> dict[str, Tensor]:
    """Terms of a loss, to report."""
    return {name: value.detach() for name, value in terms.items()}
