"""Compare new images with those that the model was trained on.

Libraries that are slow to import are imported in the functions that use them, so that `raycluster --help` answers at once.
"""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from raycluster.model.drift import drift, snapshot
from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stage import Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.step import Step
from raycluster.storage.location import Location, read_table

FIGURES = "drift.json"


def recipe(ctx: RunContext) -> Recipe:
    """The new images and their assignments."""
    return Recipe({"manifest": ctx.fingerprint("manifest"), "assign": ctx.fingerprint("assign")})


def run(ctx: RunContext, step: Step) -> Outcome:
    """Compare how the new images fall to the clusters with how the training images did. The driver holds a confidence a row."""
    from raycluster.compute.tasks import map_groups

    model, n_clusters = ctx.model, ctx.model.method.n_clusters

    def count(files: list[Location]) -> tuple[np.ndarray, np.ndarray, int]:
        table = read_table(files, ["cluster", "confidence", "outlier"])
        table = table.filter(pc.is_valid(table.column("cluster")))
        sizes = np.bincount(table.column("cluster").to_numpy(), minlength=n_clusters)
        return sizes, table.column("confidence").to_numpy(), int(table.column("outlier").to_numpy().sum())

    counted = list(map_groups(count, ctx.part_files("assign"), common=ctx.resources.common))
    sizes, confidence = sum(one[0] for one in counted), np.concatenate([one[1] for one in counted])
    flagged, expected = sum(one[2] for one in counted), model.novelty.expected
    now = snapshot(sizes, confidence)
    figures = drift(model.snapshot, now, flagged, expected, model.names, model.record["dim"])
    figures = {"n_failed": len(ctx.row_ids) - len(confidence), **figures}
    (ctx.place(step) / FIGURES).write_json(figures)
    return Outcome(len(confidence), note=figures["verdict"][0])


STAGE = Stage(
    name="drift",
    folder="drift",
    keeps=Keeps.FIXED,
    recipe=recipe,
    run=run,
    table="drift",
    figures=FIGURES,
)
