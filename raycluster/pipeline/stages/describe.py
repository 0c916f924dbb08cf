"""Sum up each cluster: name, size, typical images.

Libraries that are slow to import are imported in the functions that use them, so that `raycluster --help` answers at once.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Any

import numpy as np

from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stage import Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.step import Step
from raycluster.results.describe import Shown, Summary, clusters_table, merge, summarize
from raycluster.storage.location import Location, read_table


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
    """Write the table of clusters. A task sums up some files of the assignments; the driver holds a few rows of each cluster."""
    from raycluster.compute.tasks import map_groups

    config, descriptions = ctx.config.report, ctx.model.clusters
    shown, n_clusters = Shown(config.most_typical, config.least_typical), len(descriptions)

    def sum_up(files: list[Location]) -> Summary:
        return summarize(read_table(files, ["row_id", "cluster", "confidence"]), n_clusters, shown)

    summary = reduce(
        partial(merge, shown=shown), map_groups(sum_up, ctx.part_files("assign"), common=ctx.resources.common)
    )
    ids = np.unique(summary.row_id)
    images = ctx.gather_rows("assign", ids, ["image_id", "uri"]) if len(ids) else None
    table = clusters_table(summary, images, descriptions, shown)
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
