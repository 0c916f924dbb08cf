"""Score the clusters.

Libraries that are slow to import are imported in the functions that use them, so that `raycluster --help` answers at once.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from pydantic import Field

from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stage import Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.stages.describe import assignments_recipe
from raycluster.pipeline.step import Step
from raycluster.storage.location import Location, read_table
from raycluster.tables.markers import Facts
from raycluster.tables.rows import among, find_spans, rows_by_id

if TYPE_CHECKING:
    from raycluster.results.evaluate import LabelCounts

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
    scores, found = _score(ctx, "assign", advise=ctx.uses_text)
    if ctx.is_tuned:
        found |= {"before": _score(ctx, "baseline", advise=False)[0], "agreement": _share_kept(ctx)}
    (ctx.place(step) / FIGURES).write_json(scores)
    facts = EvaluateFacts(**found)
    if facts.text_hurts:
        ctx.warn(facts.text_advice)
    shown = [f"{name.upper()} {scores[name]:.3f}" for name in ("acc", "nmi", "ari") if scores[name] is not None]
    return Outcome(scores["n_rows"], facts=facts, note=" ".join(shown))


def _score(ctx: RunContext, stage: str, advise: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """All scores of a stage's assignments, and whether text helps (empty without `advise` or counterparts).

    Rows without a cluster count in `n_rows` only. Rows that only the tuned encoder has embedded count in no label-free score.
    """
    from raycluster.clustering.contingency import supervised_scores
    from raycluster.clustering.scores import label_free_scores
    from raycluster.randomness import sampled
    from raycluster.results.evaluate import SAMPLE, text_advice

    n_clusters, seed = ctx.config.clusters, ctx.config.seed
    assigned = ctx.statuses(stage)[0]
    sample = sampled(assigned[among(assigned, ctx.statuses("embed")[0])[0]], SAMPLE, seed)
    # The encoder as it came is the yardstick, tuned or not: in a space made for the clusters they could only look good.
    images = ctx.gather("embed", sample)
    paired = ctx.gather("semantics", sample, "counterpart") if "semantics" in ctx.plan else None
    rows = ctx.gather_rows(stage, sample, ["cluster", "confidence", "margin"])
    clusters, confidence, margin = (rows.column(name).to_numpy() for name in ("cluster", "confidence", "margin"))
    scores = {
        **supervised_scores(_count_labels(ctx, stage).table),
        "n_rows": len(ctx.row_ids),
        **label_free_scores(images, paired, clusters, confidence, margin, n_clusters),
    }
    return scores, text_advice(images, paired, n_clusters, seed) if advise and paired is not None else {}


def _count_labels(ctx: RunContext, stage: str) -> LabelCounts:
    """How many images have each label and each cluster. A task reads some files of the assignments, and the labels of their rows."""
    from raycluster.compute.tasks import map_groups
    from raycluster.results.evaluate import add_counts, count_labels, no_labels

    spans, n_clusters = find_spans(ctx.part_files("manifest")), ctx.config.clusters

    def count(files: list[Location]) -> LabelCounts:
        rows = read_table(files, ["row_id", "cluster"])
        rows = rows.filter(pc.is_valid(rows.column("cluster"))).sort_by("row_id")
        if not len(rows):
            return no_labels(n_clusters)
        labels = rows_by_id(spans, rows.column("row_id").to_numpy(), ["label"]).column("label")
        return count_labels(labels, rows.column("cluster").to_numpy(), n_clusters)

    return reduce(add_counts, map_groups(count, ctx.part_files(stage), common=ctx.resources.common))


def _share_kept(ctx: RunContext) -> float | None:
    """Share of the images that kept their cluster, among those with a cluster before and after; None if there are none."""
    from raycluster.compute.tasks import map_groups
    from raycluster.results.evaluate import count_kept

    spans = find_spans(ctx.part_files("baseline"))

    def count(files: list[Location]) -> np.ndarray:
        after = read_table(files, ["row_id", "cluster"]).sort_by("row_id")
        before = rows_by_id(spans, after.column("row_id").to_numpy(), ["cluster"])
        return count_kept(before.column("cluster"), after.column("cluster"))

    kept, both = sum(map_groups(count, ctx.part_files("assign"), common=ctx.resources.common), np.zeros(2, np.int64))
    return float(kept / both) if both else None


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
