"""Schemas of `model.json` and `clusters.json`. A file that does not fit them is refused with an error that names the keys."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from raycluster.config import EncoderConfig
from raycluster.section import Section

FORMAT = 2
"""Version of the layout of a model folder."""
ENCODER_FILE = "encoder.safetensors"
FILES = ("heads.safetensors", "novelty.safetensors", "snapshot.safetensors", "clusters.json")
"""The files that every model has beside `model.json`."""


class Stored(Section):
    """A part of a stored file. A string is not accepted as a number, and keys that this version does not know are allowed."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")


class NoveltyRecord(Section):
    """The numbers of :class:`~raycluster.model.novelty.Novelty`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    limit: float
    expected: float = Field(ge=0, le=1)


class EncoderRecord(Stored):
    """The encoder before fine-tuning. For a model trained on ready-made embeddings, `config` and `precision` are null."""

    config: EncoderConfig | None
    precision: Literal["fp32", "bf16", "fp16"] | None
    fingerprint: str

    @model_validator(mode="after")
    def _both_or_none(self) -> EncoderRecord:
        if (self.config is None) != (self.precision is None):
            raise ValueError("`config` and `precision` must both be given, or both be null")
        return self


class TrainingRecord(Stored):
    """How the heads were trained."""

    history: list[dict[str, Any]]


class ModelRecord(Stored):
    """The content of `model.json`."""

    method: str
    constants: dict[str, Any]
    dim: int = Field(ge=1)
    n_clusters: int = Field(ge=2)
    n_rows: int = Field(ge=2)
    scale: float
    novelty: NoveltyRecord
    encoder: EncoderRecord
    seed: int = Field(ge=0, lt=2**31)
    training: TrainingRecord
    finetune: dict[str, Any] | None = None
    """What fine-tuning did; None for a model without fine-tuning."""
    versions: dict[str, str]
    sha256: dict[str, str]

    @model_validator(mode="after")
    def _every_file_has_its_hash(self) -> ModelRecord:
        needed = (*FILES, ENCODER_FILE) if self.finetune is not None else FILES
        if absent := [name for name in needed if name not in self.sha256]:
            raise ValueError(f"`sha256` does not name {', '.join(absent)}")
        return self


class ClusterName(Stored):
    """One cluster in `clusters.json`."""

    name: str
    nouns: list[Any]


class ClusterNames(Stored):
    """The content of `clusters.json`, wrapped in a field so that error messages can name it."""

    clusters: list[ClusterName]
