"""Which stages a run has to do: a fingerprint for each, and the reason to run or to skip it."""

from __future__ import annotations

from collections.abc import Sequence

from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stage import Covers, Recipe, Stage
from raycluster.pipeline.step import Action, Step
from raycluster.section import fingerprint
from raycluster.tables.markers import Marker


def make_plan(ctx: RunContext, stages: Sequence[Stage]) -> None:
    """Put the steps of these stages into the context's plan. Stages that the run has no use for are left out.

    The plan is made anew after every stage that ran, because a later stage may depend on what came of it.
    """
    ctx.plan = {}
    for stage in stages:
        recipe = stage.recipe(ctx)
        if recipe is not None:
            ctx.plan[stage.name] = _step(ctx, stage, recipe)


def _step(ctx: RunContext, stage: Stage, recipe: Recipe) -> Step:
    name = _fingerprint(ctx, stage, recipe)
    marker = ctx.folder.find(stage.name, name)
    action, reason = _action(ctx, stage, recipe, marker)
    return Step(stage.name, name, f"{stage.folder}/{name}", recipe.values, action, reason, marker)


def _fingerprint(ctx: RunContext, stage: Stage, recipe: Recipe) -> str:
    """The name of the result's folder."""
    if recipe.fingerprint is not None:
        return recipe.fingerprint
    if not stage.keeps.is_trained:
        return fingerprint(recipe.same_as or stage.name, recipe.values)
    kept = None if ctx.retrain else ctx.folder.latest_with(stage.name, recipe.values)
    return kept.fingerprint if kept else fingerprint(stage.name, recipe.values, ctx.manifest.fingerprint)


def _action(ctx: RunContext, stage: Stage, recipe: Recipe, marker: Marker | None) -> tuple[Action, str]:
    """What is to be done, and why."""
    if marker is None:
        return Action.RUN, _change(ctx, stage, recipe)
    if stage.keeps.follows_rows and marker.typed(Covers).manifest != ctx.manifest.fingerprint:
        return Action.RUN, "the manifest has changed since, so its new rows are to be processed"
    return Action.SKIP, f"done on {marker.finished[:16].replace('T', ' ')} UTC"


def _change(ctx: RunContext, stage: Stage, recipe: Recipe) -> str:
    """Why there is no result of this recipe."""
    current = ctx.folder.marker(stage.name)
    if current is None:
        return "not done yet"
    changed = [key for key in recipe.values if recipe.values[key] != current.recipe.get(key)]
    return f"changed: {', '.join(changed)}" if changed else "the images have changed"
