"""Compare new images with those that the model was trained on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycluster.model.drift import drift, snapshot
from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stage import Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.step import Step
from raycluster.storage.location import read_table

FIGURES = "drift.json"


def recipe(ctx: RunContext) -> Recipe:
    """The new images and their assignments."""
    return Recipe({"manifest": ctx.fingerprint("manifest"), "assign": ctx.fingerprint("assign")})


def run(ctx: RunContext, step: Step) -> Outcome:
    """Compare how the new images fall to the clusters with how the training images did."""
    model = ctx.model
    table = read_table(ctx.part_files("assign"), ["cluster", "confidence", "outlier"])
    table = table.filter(pc.is_valid(table.column("cluster")))
    now = snapshot(_array(table, "cluster"), _array(table, "confidence"), model.method.n_clusters)
    flagged, expected = int(_array(table, "outlier").sum()), model.novelty.expected
    figures = drift(model.snapshot, now, flagged, expected, model.names, model.record["dim"])
    figures = {"n_failed": len(ctx.row_ids) - len(table), **figures}
    (ctx.place(step) / FIGURES).write_json(figures)
    return Outcome(len(table), note=figures["verdict"][0])


def _array(table: pa.Table, column: str) -> np.ndarray:
    return table.column(column).to_numpy()


STAGE = Stage(
    name="drift",
    folder="drift",
    keeps=Keeps.FIXED,
    recipe=recipe,
    run=run,
    table="drift",
    figures=FIGURES,
)
