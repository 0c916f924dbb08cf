"""Embed the images again, with the fine-tuned encoder."""

from __future__ import annotations

from raycluster.pipeline.context import RunContext
from raycluster.pipeline.failures import check_all
from raycluster.pipeline.stage import Covers, Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.stages import finetune
from raycluster.pipeline.stages.embed import embedding_recipe, finished_table, stream
from raycluster.pipeline.step import Step


def recipe(ctx: RunContext) -> Recipe | None:
    """The fine-tuned encoder; without one, or if its result is refused, there is nothing to embed with it."""
    if "finetune" not in ctx.plan or finetune.refused(ctx):
        return None
    return embedding_recipe(ctx, {"finetune": ctx.fingerprint("finetune")})


def run(ctx: RunContext, step: Step) -> Outcome:
    """Embed the images that are in the manifest and not in the table."""
    stream(ctx, step, ctx.model.spec, ctx.row_ids)
    return finished_table(ctx, step)


STAGE = Stage(
    name="reembed",
    folder="embeddings",
    keeps=Keeps.ROWS,
    recipe=recipe,
    run=run,
    facts=Covers,
    table="embeddings",
    after=lambda ctx: check_all(ctx, "reembed"),
)
