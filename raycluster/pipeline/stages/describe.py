"""Sum up each cluster: name, size, typical images.

Libraries that are slow to import are imported in the functions that use them, so that `raycluster --help` answers at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stage import Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.step import Step
from raycluster.tables.rows import find_spans, rows_by_id


def assignments_recipe(ctx: RunContext) -> dict[str, Any]:
    """Fingerprints of the images and of their assignments, with a fine-tuned encoder also of those before."""
    stages = ("manifest", "baseline", "assign") if ctx.is_tuned else ("manifest", "assign")
    return {stage: ctx.fingerprint(stage) for stage in stages}


def recipe(ctx: RunContext) -> Recipe:
    """The assignments, and how many images of each cluster are shown."""
    shown = ctx.config.report
    numbers = {"most_typical": shown.most_typical, "least_typical": shown.least_typical}
    return Recipe({**assignments_recipe(ctx), **numbers})


def run(ctx: RunContext, step: Step) -> Outcome:
    """Write the table of clusters."""
    from raycluster.results.describe import summarize

    assigned = ctx.assignments(["row_id", "cluster", "confidence"])
    spans = find_spans(ctx.part_files("assign"))

    def images(row_ids: np.ndarray) -> pa.Table:
        return rows_by_id(spans, row_ids, ["image_id", "uri", "confidence"])

    table = summarize(assigned, images, ctx.model.clusters, ctx.config.report)
    (ctx.place(step) / "part-000000000000.parquet").write_table(table)
    return Outcome(len(table))


STAGE = Stage(
    name="describe",
    folder="clusters",
    keeps=Keeps.FIXED,
    recipe=recipe,
    run=run,
    help="sum up each cluster: name, size, typical images",
    table="clusters",
)
