"""Assign the images with the model before fine-tuning, for comparison and in case that fine-tuning fails."""

from __future__ import annotations

from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stage import Covers, Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.stages.assign import assign_recipe, assign_rows
from raycluster.pipeline.step import Step


def recipe(ctx: RunContext) -> Recipe | None:
    """The model and the embeddings before fine-tuning. A run without fine-tuning writes the same table, as its assignments."""
    if not ctx.config.finetune.enabled:
        return None
    return assign_recipe(ctx, ctx.fingerprint("train"), ctx.fingerprint("embed"))


def run(ctx: RunContext, step: Step) -> Outcome:
    """Assign as a run without fine-tuning does."""
    return assign_rows(ctx, step, ctx.load_model("train").method, ctx.part_files("embed"))


STAGE = Stage(
    name="baseline",
    folder="assignments",
    keeps=Keeps.ROWS,
    recipe=recipe,
    run=run,
    facts=Covers,
    table="baseline",
)
