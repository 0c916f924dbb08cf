"""Give every image its cluster.

Libraries that are slow to import are imported in the functions that use them, so that `raycluster --help` answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raycluster.pipeline.compaction import compact
from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stage import Covers, Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.step import Step
from raycluster.tables import rows
from raycluster.tables.files import part_files
from raycluster.tables.gates import check_rows

if TYPE_CHECKING:
    from raycluster.methods.base import Method
    from raycluster.model.novelty import Novelty
    from raycluster.storage.location import Location


def assign_recipe(ctx: RunContext, model: str | None, embeddings: str | None) -> Recipe:
    """The model, the embeddings, and whether rows were only added."""
    values: dict[str, Any] = {"model": model, "embed": embeddings, "lineage": ctx.manifest.lineage}
    return Recipe(values, same_as="assign")


def recipe(ctx: RunContext) -> Recipe:
    """The fine-tuned model and its embeddings, if there are any; otherwise the model before and its embeddings."""
    if ctx.is_tuned:
        return assign_recipe(ctx, ctx.fingerprint("finetune"), ctx.fingerprint("reembed"))
    return assign_recipe(ctx, ctx.fingerprint("train"), ctx.fingerprint("embed"))


def run(ctx: RunContext, step: Step) -> Outcome:
    """Give every image of the manifest its cluster, or the status that says why it has none."""
    return assign_rows(ctx, step, ctx.model.method, ctx.part_files(ctx.embedding_stage))


def assign_rows(
    ctx: RunContext, step: Step, method: Method, embeddings: list[Location], novelty: Novelty | None = None
) -> Outcome:
    """Assign the images that are not in the table of this step. With `novelty`, those unlike anything known are flagged."""
    from raycluster.results.assign import assign

    place, name = ctx.place(step), step.stage
    compact(ctx, step, ctx.row_ids)
    missing = np.setdiff1d(ctx.row_ids, rows.row_ids(part_files(place)))
    manifest = ctx.part_files("manifest")
    with ctx.progress(name, len(missing)) as bar:
        for counts in assign(method, embeddings, manifest, missing, place, ctx.resources, novelty):
            bar.update(counts.total())
    compact(ctx, step, ctx.row_ids)
    check_rows(place.uri, rows.row_ids(part_files(place)), ctx.row_ids, exact=True)
    ctx.forget_statuses(name)
    return Outcome(len(ctx.row_ids), ctx.statuses(name)[1], Covers(manifest=ctx.manifest.fingerprint))


STAGE = Stage(
    name="assign",
    folder="assignments",
    keeps=Keeps.ROWS,
    recipe=recipe,
    run=run,
    help="assign every image to a cluster; with --model, assign new images to the clusters of a finished model",
    facts=Covers,
    table="assignments",
)
