"""Write the HTML report.

Libraries that are slow to import are imported in the functions that use them, so that `raycluster --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raycluster.images.pictures import COLUMNS
from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stage import Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.stages import evaluate, finetune
from raycluster.pipeline.step import Step
from raycluster.storage.location import read_table
from raycluster.tables.blocks import Block, find_blocks
from raycluster.tables.markers import now

if TYPE_CHECKING:
    from raycluster.results.report.data import ReportData

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
    """Gather what the report shows, and write it: one page, or with very many clusters a folder of pages."""
    from raycluster.results.report import build, pages
    from raycluster.results.report.data import data_uri
    from raycluster.results.report.html import render

    place, clusters = ctx.place(step), read_table(ctx.part_files("describe"))
    if len(clusters) <= pages.ONE_PAGE:

        def embedded(made: dict[int, bytes]) -> dict[int, str]:
            return {row: data_uri(jpeg) for row, jpeg in made.items()}

        page = render(_data(ctx, clusters, _pictures(ctx, build.shown(clusters), embedded)))
        (place / PAGE).write_bytes(page.encode())
        return Outcome(len(clusters), note=f"{len(page) / 2**20:.1f} MB")

    def written(made: dict[int, bytes]) -> dict[int, str]:
        pages.write_files(place, ((pages.picture_path(row), jpeg) for row, jpeg in made.items()))
        return {row: f"../{pages.picture_path(row)}" for row in made}

    clusters = build.fewer(clusters, pages.TYPICAL, pages.LEAST_TYPICAL)
    pictures = _pictures(ctx, build.shown(clusters), written)
    rendered = pages.render_pages(_data(ctx, clusters, pictures))
    pages.write_files(place, ((path, text.encode()) for path, text in rendered))
    return Outcome(len(clusters), note=f"{len(pictures)} pictures in files")


def _data(ctx: RunContext, clusters: pa.Table, pictures: dict[int, str]) -> ReportData:
    """What the report shows. `pictures`: row id → address."""
    from raycluster.methods.base import FittedMethod
    from raycluster.results.report import build
    from raycluster.results.report.data import ReportData

    config, model = ctx.config, ctx.model
    history = model.record["training"]["history"]
    markers = {name: marker for name in ctx.plan if (marker := ctx.folder.marker(name)) is not None}
    scored, tuned = ctx.facts("evaluate", evaluate.EvaluateFacts), ctx.facts("finetune", finetune.FinetuneFacts)
    assert scored is not None
    points, colors = _map(ctx)
    return ReportData(
        title=ctx.folder.root.uri,
        created=now(),
        facts=build.facts(config, model.record["constants"], ctx.encoder, ctx.manifest.other_files),
        statuses=ctx.statuses("embed")[1],
        failures=ctx.failures("embed"),
        n_images=len(ctx.row_ids),
        cards=build.cards(clusters, pictures),
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


def _map(ctx: RunContext) -> tuple[np.ndarray | None, np.ndarray | None]:
    """2-D coordinates [n, 2] and clusters [n] of a seeded sample of the assigned images; None if the map is left out."""
    from raycluster.randomness import sampled
    from raycluster.results.report.projection import project

    chosen = sampled(ctx.statuses("assign")[0], ctx.config.report.map_sample, ctx.config.seed)
    if not len(chosen):
        return None, None
    clusters = ctx.gather_rows("assign", chosen, ["cluster"]).column("cluster").to_numpy()
    return project(ctx.gather(ctx.embedding_stage, chosen).astype(np.float32), ctx.config.seed), clusters


def _pictures(
    ctx: RunContext, wanted: np.ndarray, keep: Callable[[dict[int, bytes]], dict[int, str]]
) -> dict[int, str]:
    """Row id → address of a small picture, of those of the images (ids ascending) that can still be read; without pictures none.

    `keep` is called in each task. It takes row id → JPEG, and returns row id → address.
    """
    from raycluster.compute.tasks import map_tasks
    from raycluster.results.report.thumbnails import thumbnails

    if ctx.spec is None or not len(wanted):
        return {}
    size, encoder, storage = ctx.config.report.thumbnail, ctx.config.encoder, ctx.config.storage

    def make(block: Block) -> dict[int, str]:
        return keep(thumbnails(block.read(COLUMNS), size, encoder, storage))

    blocks = find_blocks(ctx.picture_files, wanted, THUMBNAILS_A_TASK, fair=max(1, int(ctx.resources.cpus)))
    made = map_tasks(make, blocks, common=ctx.resources.common)
    return {row: address for some in made for row, address in some.items()}


STAGE = Stage(
    name="report",
    folder="report",
    keeps=Keeps.FIXED,
    recipe=recipe,
    run=run,
    help="write the HTML report",
    page=PAGE,
)
