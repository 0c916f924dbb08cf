"""What a run knows: its checked configuration, its plan, and the tables that its stages have written so far.

Libraries that are slow to import are imported in the functions that use them, so that `raycluster --help` answers at once.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from raycluster.config import MethodConfig, RunConfig
from raycluster.errors import DataQualityError
from raycluster.pipeline.step import Step
from raycluster.storage.location import Location
from raycluster.tables import rows
from raycluster.tables.files import part_files
from raycluster.tables.markers import FactsOf, RunFolder

if TYPE_CHECKING:
    from raycluster.compute.resources import Resources
    from raycluster.encoder.clip import EncoderSpec
    from raycluster.encoder.ready_made import Provided
    from raycluster.images.listing.numbering import NumberedListing
    from raycluster.model.model import Model

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a run knows of its manifest. The rows themselves lie in partitions, which tasks read."""

    row_ids: np.ndarray
    """int64 [n], ascending."""
    fingerprint: str
    lineage: str
    """Constant while the manifest only grows."""
    next_row_id: int
    other_files: int = 0
    """Files that are no pictures."""
    samples: tuple[tuple[str, ...], ...] = ()
    """URIs of some images of each source. Ready-made embeddings have none: no process reads the pictures behind them."""
    listed: NumberedListing | None = None
    """The rows as they were listed just now; None if the manifest that is there was not compared with its sources."""
    kept_tars: frozenset[str] = frozenset()
    """Files in which the contents of tars are kept for later listings."""
    provided: Provided | None = None
    """Where the rows of ready-made embeddings lie; None for pictures, and if all of them are imported."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The nouns of a run."""

    nouns: list[str]
    embeddings: np.ndarray | None = None
    """[n, d] float32, if `vocabulary.embeddings` gives them; otherwise the semantics stage makes them."""
    fingerprint: str
    """Changes with the nouns, their prompts, their embeddings and the encoder."""


@dataclass(kw_only=True)
class RunContext:
    """Everything that the stages of one run share. It is made by `prepare`, which checks the configuration, and handed to each stage."""

    config: RunConfig
    folder: RunFolder
    method: MethodConfig
    """The method with its own constants."""
    resources: Resources
    encoder: str
    """Fingerprint of the encoder; of ready-made embeddings, the word `provided`."""
    spec: EncoderSpec | None = None
    """The encoder; None with ready-made embeddings."""
    shard_size: int | None = None
    """Shortest side of the pictures in shards, in pixels; None: without shards."""
    vocabulary: Vocabulary | None = None
    """The nouns; None if the run has none."""
    manifest: Manifest
    finished_model: Model | None = None
    """The model that new pictures are assigned with; None in a run."""
    retrain: bool = False
    """Train again although only rows were added."""
    plan: dict[str, Step] = field(default_factory=dict)
    """The steps of this run by the names of their stages, in order."""
    warnings: list[str] = field(default_factory=list)
    """What the user should know, for result and report."""
    _statuses: dict[str, tuple[np.ndarray, dict[str, int]]] = field(default_factory=dict, init=False)

    def fingerprint(self, stage: str) -> str | None:
        """Fingerprint of a stage in the plan; None if the run does without it."""
        return self.plan[stage].fingerprint if stage in self.plan else None

    def place(self, step: Step) -> Location:
        """The folder that a step writes."""
        return self.folder.root / step.path

    def part_files(self, stage: str) -> list[Location]:
        """The part files of a stage's table."""
        return part_files(self.place(self.plan[stage]))

    def facts(self, stage: str, kind: type[FactsOf]) -> FactsOf | None:
        """What a finished stage has left for later ones; None if it is not finished."""
        marker = self.folder.marker(stage)
        return None if marker is None else marker.typed(kind)

    @property
    def row_ids(self) -> np.ndarray:
        """Ids of the manifest's rows, ascending."""
        return self.manifest.row_ids

    def statuses(self, stage: str) -> tuple[np.ndarray, dict[str, int]]:
        """Of a table with a column `status`: ids of the manifest's rows that are `ok`, ascending, and the histogram of all of them.

        They are read once, and again after the stage has run.
        """
        if stage not in self._statuses:
            self._statuses[stage] = rows.statuses(self.part_files(stage), self.row_ids)
        return self._statuses[stage]

    def forget_statuses(self, stage: str) -> None:
        """Read the statuses again at the next call: the stage has written more rows."""
        self._statuses.pop(stage, None)

    def failures(self, stage: str) -> dict[str, list[tuple[str, str]]]:
        """For each status but `ok` up to three pairs (uri, reason)."""
        if not set(self.statuses(stage)[1]) - {"ok"}:
            return {}
        return rows.failures(self.part_files(stage), self.row_ids, self.part_files("manifest"))

    @property
    def picture_files(self) -> list[Location]:
        """The part files by which pictures are read: of the shards, or of the manifest, which names the originals."""
        return self.part_files("shard" if "shard" in self.plan else "manifest")

    @property
    def is_tuned(self) -> bool:
        """Whether images are assigned with a fine-tuned encoder."""
        return "reembed" in self.plan

    @property
    def embedding_stage(self) -> str:
        """The stage that makes the embeddings that images are assigned by."""
        return "reembed" if self.is_tuned else "embed"

    @property
    def uses_text(self) -> bool:
        """Whether nouns help this run's clustering."""
        from raycluster.methods import registry

        return "semantics" in self.plan and registry.method_class(self.method.name).text != "none"

    @cached_property
    def model(self) -> Model:
        """The model that assigns, loaded once."""
        return self.finished_model or self.load_model("finetune" if self.is_tuned else "train")

    def load_model(self, stage: str) -> Model:
        """Load the model that a stage of this run has written."""
        from raycluster.model.files import load_model

        return load_model(self.place(self.plan[stage]), self.config.storage)

    def gather(self, stage: str, wanted: np.ndarray, column: str = "embedding") -> np.ndarray:
        """Vectors [n, d] of a sample of a table's rows, `wanted` (ids, ascending). Raises :class:`KeyError` for a row that is not there."""
        from raycluster.compute.gather import gather

        return gather(self.part_files(stage), wanted, column, common=self.resources.common)

    def gather_rows(self, stage: str, wanted: np.ndarray, columns: list[str]) -> pa.Table:
        """`row_id` and these columns of a sample of a table's rows, as :meth:`gather` does."""
        from raycluster.compute.gather import gather_rows

        return gather_rows(self.part_files(stage), wanted, columns, common=self.resources.common)

    def training_rows(self) -> np.ndarray:
        """Ids of the images that heads and nouns are fitted to, ascending."""
        from raycluster.randomness import sampled

        ok = self.statuses("embed")[0]
        if len(ok) < self.config.clusters:
            raise DataQualityError(
                f"clusters: {self.config.clusters} clusters, but only {len(ok)} images could be read; lower `clusters` or repair the images"
            )
        return sampled(ok, self.method.train_sample, self.config.seed)

    def warn(self, warning: str) -> None:
        """Tell the user, once, in result and report."""
        if warning not in self.warnings:
            self.warnings.append(warning)

    def warn_of_missing_cuda(self) -> None:
        """Warn, before costly work, of GPUs on which nothing would be computed."""
        from raycluster.compute.resources import missing_cuda

        warning = missing_cuda() if self.resources.use_gpu else ""
        if warning and warning not in self.warnings:
            log.warning("%s", warning)
            self.warn(warning)

    def progress(self, stage: str, total: int) -> tqdm[Any]:
        """A progress bar in a terminal. Elsewhere, as in the log of a job, it would be thousands of lines."""
        return tqdm(total=total, desc=stage, unit="img", disable=not sys.stderr.isatty(), leave=False)
