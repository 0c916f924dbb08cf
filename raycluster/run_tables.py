"""What a run knows and what its stages have written so far, read when a later stage asks for it."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from raycluster import rows
from raycluster.config import RunConfig
from raycluster.errors import DataQualityError
from raycluster.methods import registry
from raycluster.plan import Step
from raycluster.prepare import Prepared
from raycluster.resources import missing_cuda
from raycluster.run_folder import RunFolder, parts
from raycluster.storage import Location, read_table

if TYPE_CHECKING:
    from raycluster.model import Model


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a stage wrote."""

    rows: int
    statuses: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    """The end of its line in the log."""


@dataclass
class RunTables:
    """The tables of one run under its plan."""

    ready: Prepared
    """The checked configuration."""
    steps: dict[str, Step]
    """The plan."""
    warnings: list[str] = field(default_factory=list)
    """What the user should know, for result and report."""

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.ready.config

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return self.ready.folder

    @cached_property
    def row_ids(self) -> np.ndarray:
        """Ids of the manifest's rows, ascending."""
        return np.sort(self.ready.listing.column("row_id").to_numpy())

    @cached_property
    def embedded(self) -> tuple[np.ndarray, dict[str, int]]:
        """Ids of the manifest's rows whose status is `ok`, ascending, and the status histogram of all of them."""
        return rows.statuses(self.parts("embed"), self.row_ids)

    def failures(self, stage: str = "embed") -> tuple[dict[str, int], dict[str, list[tuple[str, str]]]]:
        """Status histogram of the images embedded (or, `shard`, stored), and for each status but `ok` up to three (uri, reason)."""
        counts = self.embedded[1] if stage == "embed" else rows.statuses(self.parts(stage), self.row_ids)[1]
        return counts, rows.failures(self.parts(stage), self.ready.listing) if set(counts) - {"ok"} else {}

    @property
    def pictured(self) -> list[Location]:
        """The part files by which pictures are read: of the shards, or of the manifest, which names the originals."""
        return self.parts("shard" if "shard" in self.steps else "manifest")

    def place(self, step: Step) -> Location:
        """The folder of a stage."""
        return self.folder.folder(step.stage, step.fingerprint)

    def parts(self, stage: str) -> list[Location]:
        """The part files of a stage's table."""
        return parts(self.place(self.steps[stage]))

    @property
    def tuned(self) -> bool:
        """Whether images are assigned with a fine-tuned encoder."""
        return "reembed" in self.steps

    @property
    def seen(self) -> list[Location]:
        """The part files of the embeddings that images are assigned by."""
        return self.parts("reembed" if self.tuned else "embed")

    @property
    def uses_text(self) -> bool:
        """Whether nouns help this run's clustering."""
        return "semantics" in self.steps and registry.method_class(self.ready.method.name).text != "none"

    @cached_property
    def model(self) -> Model:
        """The model that assigns, loaded once."""
        from raycluster.model_files import load_model

        return load_model(self.place(self.steps["finetune" if self.tuned else "train"]), self.config.storage)

    def warn_of_missing_cuda(self) -> None:
        """Warn, before costly work, of GPUs on which nothing would be computed."""
        warning = missing_cuda() if self.ready.resources.use_gpu else ""
        if warning and warning not in self.warnings:
            log.warning("%s", warning)
            self.warnings.append(warning)

    def assignments(self, stage: str = "assign") -> pa.Table:
        """The whole assignments table."""
        return read_table(self.parts(stage))

    def training_rows(self) -> np.ndarray:
        """Ids of the images that heads and nouns are fitted to, ascending."""
        from raycluster.training.counted import sampled

        ok = self.embedded[0]
        if len(ok) < self.config.clusters:
            raise DataQualityError(
                f"clusters: {self.config.clusters} clusters, but only {len(ok)} images could be read; lower `clusters` or mend the images"
            )
        return sampled(ok, self.ready.method.train_sample, self.config.seed)

    def kept_nouns(self) -> tuple[list[str], np.ndarray]:
        """The nouns that the method's semantic space kept, and their unit embeddings [M, d] float32."""
        from raycluster.semantics.vocabulary import read_nouns

        return read_nouns(self.place(self.steps["semantics"]) / "nouns.parquet")

    def progress(self, stage: str, total: int) -> tqdm[Any]:
        """A bar in a terminal; elsewhere (job logs) it would be thousands of lines."""
        return tqdm(total=total, desc=stage, unit="img", disable=not sys.stderr.isatty(), leave=False)
