"""New pictures for the clusters of a finished model: what `raycluster assign --model` checks, and what its stages do.

The folder is one like a run's, with the stages manifest, embed, assign and drift; the first two are those of a run.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycluster import distributed
from raycluster.config import AssignConfig, RunConfig, fingerprint, validate
from raycluster.drift import drift, snapshot
from raycluster.encoder import provided
from raycluster.errors import ConfigError
from raycluster.model import Model
from raycluster.node_checks import find_common
from raycluster.plan import Inputs, Step
from raycluster.prepare import Prepared, embedding_files, list_inputs
from raycluster.resources import resolve
from raycluster.run_folder import FIGURES, PLAN, RunFolder
from raycluster.run_tables import Outcome
from raycluster.stages import Stages
from raycluster.storage import read_table


def prepare(settings: AssignConfig, model: Model, folder: RunFolder, retry_failed: bool) -> Prepared:
    """Check all that can be wrong, cheapest first; raises :class:`ConfigError`."""
    config = _as_run(settings, model)
    if config.images is None:
        dim = provided.dimension(embedding_files(config, folder))
        if dim not in (None, model.record["dim"]):
            raise ConfigError(
                f"embeddings: they have {dim} dimensions, the model takes {model.record['dim']}; make them with the model's encoder"
            )
    elif model.encoder_config is None:
        raise ConfigError(
            f"images: {model.folder.uri} was trained on ready-made embeddings and cannot read pictures; "
            "embed them with the same encoder and give `embeddings` instead"
        )
    distributed.connect()
    resources = resolve(config.resources)
    spec = model.spec_on("cuda" if resources.use_gpu else "cpu") if config.images else None
    listing, facts, samples = list_inputs(config, folder, retry_failed)
    resources = replace(resources, common=find_common(config, folder.root, samples, spec))
    # As the model was trained: the precision of today's device is no reason to do everything again.
    encoder, method = model.spec.fingerprint if spec else "provided", model.method.config
    inputs = Inputs(config, method, facts["fingerprint"], facts["lineage"], encoder, {}, None)
    return Prepared(config, folder, method, resources, spec, None, None, None, listing, facts, inputs)


def identity(model: Model) -> str:
    """A hash of the model: of its record, which holds the hashes of its files."""
    return fingerprint(model.record)


def check_output(folder: RunFolder, model: Model) -> None:
    """Raises :class:`ConfigError` if the output is a run's folder or the model's."""
    of_a_run = (folder.root / PLAN).exists() and "train" in folder.plan()
    if of_a_run or f"{folder.root.uri}/".startswith(f"{model.folder.uri}/"):
        what = "a run" if of_a_run else "the model"
        raise ConfigError(
            f"output: {folder.root.uri} is the folder of {what}, whose tables would mix with these; choose another `output`"
        )


def _as_run(settings: AssignConfig, model: Model) -> RunConfig:
    """The settings as those of a run with this model, which the stages know."""
    given = settings.model_dump(exclude={"model"}, exclude_none=True)
    encoder = {} if model.encoder_config is None else {"encoder": model.encoder_config.model_dump()}
    known = {"clusters": model.method.n_clusters, "seed": model.record["seed"]}
    return validate({**given, **encoder, **known}, RunConfig, "options")


@dataclass
class NewPictures(Stages):
    """The stages of new pictures."""

    known: Model = field(kw_only=True)

    def assign(self, step: Step) -> Outcome:
        """Give every new picture its cluster or its status, and flag those unlike anything the model has seen."""
        return self._assign(step, self.known.method, self.parts("embed"), self.known.novelty)

    def drift(self, step: Step) -> Outcome:
        """Compare with the training set."""
        table = read_table(self.parts("assign"), ["cluster", "confidence", "outlier"])
        table = table.filter(pc.is_valid(table.column("cluster")))
        now = snapshot(_array(table, "cluster"), _array(table, "confidence"), self.known.method.n_clusters)
        flagged, expected = int(_array(table, "outlier").sum()), self.known.novelty.expected
        figures = drift(self.known.snapshot, now, flagged, expected, self.known.names, self.known.record["dim"])
        figures = {"n_failed": len(self.row_ids) - len(table), **figures}
        (self.place(step) / FIGURES["drift"]).write_json(figures)
        return Outcome(len(table), note=figures["verdict"][0])


def _array(table: pa.Table, column: str) -> np.ndarray:
    return table.column(column).to_numpy()
