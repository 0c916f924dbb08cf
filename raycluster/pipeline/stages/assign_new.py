"""Give new images the clusters of a finished model."""

from __future__ import annotations

from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stage import Covers, Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.stages.assign import assign_recipe, assign_rows
from raycluster.pipeline.step import Step
from raycluster.section import fingerprint


def recipe(ctx: RunContext) -> Recipe:
    """The model, known by its record, which holds the hashes of its files, and the embeddings of the new images."""
    return assign_recipe(ctx, fingerprint(ctx.model.record), ctx.fingerprint("embed"))


def run(ctx: RunContext, step: Step) -> Outcome:
    """Give every new image its cluster or its status, and flag those unlike anything that the model has seen."""
    return assign_rows(ctx, step, ctx.model.method, ctx.part_files("embed"), ctx.model.novelty)


STAGE = Stage(
    name="assign",
    folder="assignments",
    keeps=Keeps.ROWS,
    recipe=recipe,
    run=run,
    facts=Covers,
    table="assignments",
)
