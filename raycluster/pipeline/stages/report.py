"""Write the HTML page.

Libraries that are slow to import are imported in the functions that use them, so that `raycluster --help` answers at once.
"""

from __future__ import annotations

import numpy as np

from raycluster.images.pictures import COLUMNS
from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stage import Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.stages import evaluate, finetune
from raycluster.pipeline.step import Step
from raycluster.storage.location import read_table
from raycluster.tables.blocks import Block, find_blocks
from raycluster.tables.markers import now

PAGE = "index.html"
THUMBNAILS_A_TASK = 64
"""Thumbnails made by one task, whose originals are in memory together."""


def recipe(ctx: RunContext) -> Recipe:
    """The clusters, the scores, and what the page is to show."""
    values = {
        "clusters": ctx.fingerprint("describe"),
        "evaluation": ctx.fingerprint("evaluate"),
        "report": ctx.config.report.model_dump(mode="json"),
    }
    if "finetune" in ctx.plan:
        values |= {"finetune": ctx.fingerprint("finetune"), "refused": finetune.refused(ctx)}
    return Recipe(values)


def run(ctx: RunContext, step: Step) -> Outcome:
    """Gather what the page shows, and write it."""
    from raycluster.methods.base import FittedMethod
    from raycluster.results.report import build
    from raycluster.results.report.html import ReportData, render

    config, model = ctx.config, ctx.model
    history = model.record["training"]["history"]
    markers = {name: marker for name in ctx.plan if (marker := ctx.folder.marker(name)) is not None}
    scored, tuned = ctx.facts("evaluate", evaluate.EvaluateFacts), ctx.facts("finetune", finetune.FinetuneFacts)
    assert scored is not None
    clusters = read_table(ctx.part_files("describe"))
    points, colors = build.sample_map(
        ctx.embedding_files_in_use, ctx.assignments(["row_id", "cluster"]), config.report.map_sample, config.seed
    )
    page = render(
        ReportData(
            title=ctx.folder.root.uri,
            created=now(),
            facts=build.facts(config, model.record["constants"], ctx.encoder, ctx.manifest.other_files),
            statuses=ctx.statuses("embed")[1],
            failures=ctx.failures("embed"),
            n_images=len(ctx.row_ids),
            cards=build.cards(clusters, _thumbnails(ctx, build.shown(clusters))),
            metrics=(ctx.place(ctx.plan["evaluate"]) / evaluate.FIGURES).read_json(),
            stages={name: marker.seconds for name, marker in markers.items()},
            advice=scored.text_advice,
            tuning=None
            if tuned is None
            else build.tuning(tuned.kind, tuned.refused, tuned.history, scored.agreement, scored.before),
            fit=model.method.explain(history[0]) if isinstance(model.method, FittedMethod) else "",
            training=history,
            map_points=points,
            map_clusters=colors,
            warnings=ctx.warnings,
        )
    )
    (ctx.place(step) / PAGE).write_bytes(page.encode())
    return Outcome(config.clusters, note=f"{len(page) / 2**20:.1f} MB")


def _thumbnails(ctx: RunContext, wanted: np.ndarray) -> dict[int, bytes]:
    """Row id → small JPEG, of those of the images (ids ascending) that can still be read; without pictures none."""
    from raycluster.compute.tasks import map_tasks
    from raycluster.results.report.thumbnails import thumbnails

    if ctx.spec is None or not len(wanted):
        return {}
    size, encoder, storage = ctx.config.report.thumbnail, ctx.config.encoder, ctx.config.storage

    def make(block: Block) -> dict[int, bytes]:
        return thumbnails(block.read(COLUMNS), size, encoder, storage)

    blocks = find_blocks(ctx.picture_files, wanted, THUMBNAILS_A_TASK, fair=max(1, int(ctx.resources.cpus)))
    made = map_tasks(make, blocks, common=ctx.resources.common)
    return {row: jpeg for some in made for row, jpeg in some.items()}


STAGE = Stage(
    name="report",
    folder="report",
    keeps=Keeps.FIXED,
    recipe=recipe,
    run=run,
    help="write the HTML page",
    page=PAGE,
)
