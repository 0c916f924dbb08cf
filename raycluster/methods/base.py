"""Base classes of the clustering methods: constants, semantic space, fitting or training, and prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import nll_loss, normalize

from raycluster.config import MethodConfig
from raycluster.semantics.pairing import SemanticSpace, TACSpace

BY_PROFILE: Any = None
"""Default of a constant that the profile's rule fills in when the numbers of images and clusters are known.

The type of such a constant does not allow None, because every method sees the constant filled in. The default None is accepted
all the same, because pydantic does not check defaults.
"""


JOINED_ROWS = 65_536
"""Number of rows that are converted to float32 at once."""


@dataclass(frozen=True)
class TrainingData:
    """The rows that heads are trained on, on one device."""

    row_ids: Tensor
    """[N] int64, the ids in the manifest. Every random draw for a row depends on its id (:mod:`raycluster.randomness`)."""
    images: Tensor
    """[N, d] embeddings as the encoder gives them, float16 as stored (or wider), not normalized."""
    counterparts: Tensor | None = None
    """[N, d], the unit text counterpart of each image; None for methods without a text side."""
    nouns: Tensor | None = None
    """[M, d] float32 unit rows, the kept nouns; None for methods without a text side."""
    vocabulary: Tensor | None = None
    """[V, d] float32 unit rows, all nouns of the vocabulary; None for methods that do not use them, or without a vocabulary."""
    consensus: Tensor | None = None
    """[N] int64, the cluster that the method `consensus` gives each row; None unless these clusters guide the training."""

    def unit_images(self, rows: Tensor) -> Tensor:
        """Return the images at these positions as unit rows [b, d], in at least float32."""
        return _unit(self.images[rows])

    def unit_counterparts(self, rows: Tensor) -> Tensor:
        """Return the counterparts at these positions as unit rows [b, d], in at least float32."""
        assert self.counterparts is not None
        return _unit(self.counterparts[rows])

    def side_by_side(self, positions: Tensor | None = None) -> Tensor:
        """Return unit rows [n, 2d] of image and counterpart at these positions (default: all), in float16.

        A million of them take 2 GB at 512 dimensions, and the call takes little besides.
        """
        if positions is None:
            positions = torch.arange(len(self.images), device=self.images.device)
        joined = torch.empty(len(positions), 2 * self.images.shape[1], dtype=torch.float16, device=self.images.device)
        for part, rows in zip(joined.split(JOINED_ROWS), positions.split(JOINED_ROWS), strict=True):
            part.copy_(side_by_side(self.unit_images(rows), self.unit_counterparts(rows)))
        return joined


def side_by_side(images: Tensor, counterparts: Tensor) -> Tensor:
    """Concatenate two sets of unit rows [n, d] to unit rows [n, 2d], the space of TAC without training."""
    return normalize(torch.cat([images, counterparts], dim=1), dim=1)


def _unit(rows: Tensor) -> Tensor:
    return normalize(rows.float() if rows.dtype == torch.float16 else rows, dim=1)


@dataclass(frozen=True)
class NeighborGraph:
    """Which neighbors of each training row a method uses."""

    space: Literal["images", "counterparts"]
    k: int
    metric: Literal["cosine", "euclidean"] = "cosine"
    include_self: bool = False


@dataclass(frozen=True)
class Schedule:
    """The length of a training."""

    batch_size: int
    """Rows of the global batch. An epoch's last, incomplete batch is dropped; which rows it holds differs from epoch to epoch."""
    epochs: int
    steps_per_epoch: int


class TrainedConfig(MethodConfig):
    """Constants of every trained method."""

    model_config = ConfigDict(extra="forbid")

    learning_rate: float = Field(default=BY_PROFILE, gt=0)
    """Adam's learning rate, constant."""
    batch_size: int = Field(default=BY_PROFILE, ge=2)
    """Rows of the global batch."""
    epochs: int = Field(default=BY_PROFILE, ge=1)
    """Passes over the training rows."""
    init: Literal["own", "consensus"] = "own"
    """`consensus`: the method `consensus` runs first, and a loss draws the heads towards its clusters."""
    consensus_weight: float = Field(default=5.0, gt=0)
    """With `init: consensus`: weight of the cross-entropy with the clusters of `consensus`."""


class Method(nn.Module, ABC):
    """Base of every method. Its state dict holds all that prediction needs."""

    name: ClassVar[str]
    text: ClassVar[Literal["none", "optional", "required"]]
    """Whether the method uses nouns. If they are required, a run without a vocabulary is refused."""
    Config: ClassVar[type[MethodConfig]]
    image_head: ClassVar[tuple[str, ...]] = ()
    """Names of the modules between embedding and logits. Fine-tuning the encoder trains them too; it is impossible if there are none."""

    def __init__(self, config: MethodConfig, dim: int, n_clusters: int, n_rows: int, seed: int) -> None:
        """`dim`: size d of an embedding; `n_rows`: number N of training rows, on which constants may depend."""
        super().__init__()
        self.config, self.dim, self.n_clusters, self.n_rows, self.seed = config, dim, n_clusters, n_rows, seed

    @classmethod
    def variant(cls, config: MethodConfig) -> type[Method]:
        """Return the class for this configuration; a method may have several (TAC with and without training)."""
        return cls

    @classmethod
    def space(cls, config: MethodConfig) -> SemanticSpace:
        """Return the semantic space: which nouns this method keeps, and how it makes text counterparts of them."""
        return TACSpace()

    @classmethod
    def wants_vocabulary(cls, config: MethodConfig) -> bool:
        """Return whether training uses all nouns, not only the kept ones."""
        return False

    @classmethod
    def default_sample(cls, n_clusters: int) -> int | None:
        """Return the number of images that a method is fitted to where the configuration gives none; None: that of its class of constants."""
        return None

    @property
    def constants(self) -> dict[str, Any]:
        """Return the method's section of the configuration as plain data, with every constant filled in."""
        return self.config.model_dump(mode="json")

    @property
    def input_scale(self) -> float:
        """The factor that embeddings are multiplied by before the heads; 1 for methods that normalize them."""
        return 1.0

    @torch.no_grad()
    def predict(self, embeddings: Tensor) -> Tensor:
        """Return cluster probabilities [B, C] float32 for embeddings [B, d] as the encoder gives them."""
        self.eval()
        return self.logits(embeddings.float()).softmax(dim=1)

    @abstractmethod
    def logits(self, embeddings: Tensor) -> Tensor:
        """Return logits [B, C], with gradient, for embeddings [B, d] as the encoder gives them."""


class FittedMethod(Method):
    """A method that one process fits in one call."""

    @abstractmethod
    def fit(self, data: TrainingData) -> dict[str, float]:
        """Fit to the data and return facts for the report."""

    @abstractmethod
    def explain(self, facts: Mapping[str, float]) -> str:
        """Put the facts that :meth:`fit` returned into sentences for the report."""


class TrainedMethod(Method):
    """A method with heads that are trained by gradient steps on any number of workers."""

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
        """Return the authors' constants: the profile `paper`."""

    @staticmethod
    @abstractmethod
    def scaled(n_rows: int, n_clusters: int) -> dict[str, Any]:
        """Return constants for any number of images and clusters (:mod:`raycluster.methods.scaling`): the profile `default`."""

    @abstractmethod
    def build_heads(self) -> None:
        """Make the parameters. The caller has seeded torch's random state."""

    @classmethod
    def wants_vocabulary(cls, config: MethodConfig) -> bool:
        """Return whether `consensus` guides the training, because `consensus` uses all nouns."""
        return isinstance(config, TrainedConfig) and config.init == "consensus"

    def schedule(self) -> Schedule:
        """Return the schedule. It has whole batches only; with fewer rows than a batch, one batch holds all rows."""
        batch = min(self.config.batch_size, self.n_rows)
        return Schedule(batch, self.config.epochs, self.n_rows // batch)

    def graphs(self) -> dict[str, NeighborGraph]:
        """Return the neighbor graphs, by name. They are found once, before training, and all workers share them."""
        return {}

    def setup(self, data: TrainingData) -> None:
        """Set parameters and buffers from the data before the first step. All workers take the first worker's result."""
        return

    def start_epoch(self, data: TrainingData) -> None:
        """Update buffers before an epoch (SIC's semantic centers). All workers take the first worker's result."""
        return

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """Return a fresh optimizer over the trainable parameters."""

    @abstractmethod
    def forward_batch(
        self, data: TrainingData, neighbors: Mapping[str, Tensor], rows: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        """Return outputs [b, …] for this worker's share, the positions `rows` [b]; `neighbors`: int32 [N, k] for each graph."""

    @abstractmethod
    def log_assignments(self, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the logarithms of the assignments of the rows, [B, C] for the cluster head of each modality."""

    def guided_loss(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the result of :meth:`loss`.

        With `init: consensus`, the cross-entropy with the clusters `outputs["consensus"]` [B] is added.
        """
        total, terms = self.loss(outputs)
        if self.config.init == "own":
            return total, terms
        heads = self.log_assignments(outputs)
        guidance = torch.stack([nll_loss(head, outputs["consensus"]) for head in heads]).mean()
        total = total + self.config.consensus_weight * guidance
        return total, {**terms, **detached(loss=total, consensus=guidance)}

    @abstractmethod
    def loss(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the global batch from the gathered outputs [B, …], and its terms for the report as detached scalars."""

    def after_step(self, outputs: Mapping[str, Tensor]) -> None:
        """Update buffers from the gathered outputs after the optimizer's step (SEIC's history)."""
        return


def detached(**terms: Tensor) -> dict[str, Tensor]:
    """Return the terms of a loss without gradient, for the report."""
    return {name: value.detach() for name, value in terms.items()}
