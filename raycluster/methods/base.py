"""What a clustering method is: its constants, how it is fitted or trained, how it predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from raycluster.config import MethodConfig


@dataclass(frozen=True)
class TrainingData:
    """The rows that heads are trained on, on one device."""

    row_ids: Tensor
    """[N] int64, ids in the manifest; counted randomness hangs on them."""
    images: Tensor
    """[N, d] float32 as the encoder gives them, rounded to float16 once; not normalized."""
    counterparts: Tensor | None
    """[N, d] float32 unit rows, the text counterpart of each image; None for methods without a text side."""


@dataclass(frozen=True)
class Schedule:
    """How long a training is."""

    batch_size: int
    """Rows of the global batch; the last, incomplete batch of an epoch is dropped."""
    epochs: int
    steps_per_epoch: int


class Method(nn.Module, ABC):
    """Base of every method. Its state dict holds all that prediction needs."""

    name: ClassVar[str]
    uses_text: ClassVar[bool]
    """Whether training needs text counterparts."""
    Config: ClassVar[type[MethodConfig]]

    def __init__(self, config: MethodConfig, dim: int, n_clusters: int, n_rows: int, seed: int) -> None:
        """`dim`: size d of an embedding; `n_rows`: number N of training rows, to which constants may be scaled."""
        super().__init__()
        self.config, self.dim, self.n_clusters, self.n_rows, self.seed = config, dim, n_clusters, n_rows, seed

    @property
    def constants(self) -> dict[str, Any]:
        """The method's section of the configuration with every constant resolved, as plain data."""
        return self.config.model_dump(mode="json")

    @torch.no_grad()
    def predict(self, embeddings: Tensor) -> Tensor:
        """[B, d] embeddings as the encoder gives them → [B, C] float32 cluster probabilities."""
        self.eval()
        return self._probabilities(embeddings.float())

    @abstractmethod
    def _probabilities(self, embeddings: Tensor) -> Tensor: ...


class FittedMethod(Method):
    """A method that is fitted in one go by one process."""

    @abstractmethod
    def fit(self, data: TrainingData) -> dict[str, float]:
        """Fit to the data; returns what there is to report."""


class TrainedMethod(Method):
    """A method whose heads are trained by gradient steps on any number of workers."""

    @abstractmethod
    def schedule(self) -> Schedule:
        """Batch size, epochs and steps for this number of rows."""

    def prepare(self, data: TrainingData) -> dict[str, Tensor]:
        """What is computed once from all rows and shared by all workers, such as neighbors."""
        return {}

    def start_epoch(self, data: TrainingData, extras: Mapping[str, Tensor], epoch: int) -> None:
        """Called before each epoch, on every worker with the same result (SIC's pseudo-labels)."""
        return

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimizer over the trainable parameters."""

    @abstractmethod
    def forward_batch(
        self, data: TrainingData, extras: Mapping[str, Tensor], rows: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        """Outputs [b, …] for the positions `rows` [b] of this worker's share of the batch."""

    @abstractmethod
    def loss(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Loss of the global batch from the gathered outputs [B, …], and its terms to report."""
