"""Score the clusters.

Libraries that are slow to import are imported in the functions that use them, so that `raycluster --help` answers at once.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import Field

from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stage import Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.stages.describe import assignments_recipe
from raycluster.pipeline.step import Step
from raycluster.storage.location import read_table
from raycluster.tables.markers import Facts

FIGURES = "metrics.json"


class EvaluateFacts(Facts):
    """What scoring leaves for the report."""

    text_hurts: bool = False
    text_advice: str = ""
    before: dict[str, Any] = Field(default_factory=dict)
    """Scores before fine-tuning."""
    agreement: float | None = None
    """Share of the images that kept their cluster in fine-tuning."""


def recipe(ctx: RunContext) -> Recipe:
    """The assignments, and the counterparts that some scores look at."""
    return Recipe({**assignments_recipe(ctx), "semantics": ctx.fingerprint("semantics")})


def run(ctx: RunContext, step: Step) -> Outcome:
    """Score the assignments. With a fine-tuned encoder, score those before too."""
    from raycluster.results.evaluate import evaluate, share_kept

    # The encoder as it came is the yardstick, tuned or not: in a space made for the clusters they could only look good.
    score = partial(
        evaluate,
        manifest=read_table(ctx.part_files("manifest"), ["row_id", "label"]),
        embedded=ctx.statuses("embed")[0],
        embeddings=ctx.part_files("embed"),
        counterparts=ctx.part_files("semantics") if "semantics" in ctx.plan else None,
        n_clusters=ctx.config.clusters,
        seed=ctx.config.seed,
    )
    columns = ["row_id", "cluster", "confidence", "margin"]
    assigned = ctx.assignments(columns)
    scores, found = score(assigned, advise=ctx.uses_text)
    if ctx.is_tuned:
        before = ctx.assignments(columns, "baseline")
        found |= {"before": score(before, advise=False)[0], "agreement": share_kept(before, assigned)}
    (ctx.place(step) / FIGURES).write_json(scores)
    facts = EvaluateFacts(**found)
    if facts.text_hurts:
        ctx.warn(facts.text_advice)
    shown = [f"{name.upper()} {scores[name]:.3f}" for name in ("acc", "nmi", "ari") if scores[name] is not None]
    return Outcome(scores["n_rows"], facts=facts, note=" ".join(shown))


STAGE = Stage(
    name="evaluate",
    folder="evaluation",
    keeps=Keeps.FIXED,
    recipe=recipe,
    run=run,
    help="score the clusters",
    facts=EvaluateFacts,
    figures=FIGURES,
)
