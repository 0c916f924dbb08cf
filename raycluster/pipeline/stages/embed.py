"""Embed the images.

Libraries that are slow to import are imported in the functions that use them, so that `raycluster --help` answers at once.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from raycluster.config import RunConfig
from raycluster.encoder import ready_made
from raycluster.pipeline.compaction import compact
from raycluster.pipeline.context import RunContext
from raycluster.pipeline.failures import check_all, failure_gate
from raycluster.pipeline.stage import Covers, Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.step import Step
from raycluster.tables import rows
from raycluster.tables.files import part_files
from raycluster.tables.gates import check_rows

if TYPE_CHECKING:
    from raycluster.encoder.clip import EncoderSpec


def picture_limits(config: RunConfig) -> dict[str, Any]:
    """What decides, besides the encoder, which pictures are read."""
    return config.encoder.model_dump(include={"max_bytes", "max_pixels"}) if config.images else {}


def embedding_recipe(ctx: RunContext, encoder: Any) -> Recipe:
    """The encoder, and which pictures it sees: originals within limits, or what shards hold of them."""
    shards = {} if ctx.shard_size is None else {"shards": ctx.shard_size}
    return Recipe({"encoder": encoder, **picture_limits(ctx.config), **shards}, same_as="embed")


def recipe(ctx: RunContext) -> Recipe:
    """The encoder as it came."""
    return embedding_recipe(ctx, ctx.encoder)


def run(ctx: RunContext, step: Step) -> Outcome:
    """Embed the images that are in the manifest and not in the table."""
    if ctx.spec is None:
        _import_ready_made(ctx, step)
    else:
        from raycluster.encoder.clip import check_encoder

        check_encoder(ctx.spec)
        ctx.warn_of_missing_cuda()
        stream(ctx, step, ctx.spec, ctx.row_ids)
    return finished_table(ctx, step)


def _import_ready_made(ctx: RunContext, step: Step) -> None:
    from raycluster.compute.tasks import map_tasks

    provided, place = ctx.manifest.provided, ctx.place(step)
    assert provided is not None
    compact(ctx, step, ctx.row_ids)
    missing = np.setdiff1d(ctx.row_ids, rows.row_ids(part_files(place)))
    manifest, dim = rows.find_spans(ctx.part_files("manifest")), provided.dim
    with ctx.progress("embed", len(missing)) as bar:
        for count in map_tasks(
            lambda some: ready_made.import_slice(some, dim, manifest, place),
            provided.missing(missing),
            common=ctx.resources.common,
        ):
            bar.update(count)
    compact(ctx, step, ctx.row_ids)


def stream(ctx: RunContext, step: Step, spec: EncoderSpec, wanted: np.ndarray) -> None:
    """Embed those of the wanted rows that are not in the table of this step yet."""
    from raycluster.encoder.embed import EmbedJob, embed, rounds

    place = ctx.place(step)
    compact(ctx, step, ctx.row_ids)
    job, files = EmbedJob(spec, ctx.config.encoder, ctx.config.storage, place), ctx.picture_files
    missing, judge = np.setdiff1d(wanted, rows.row_ids(part_files(place))), failure_gate(ctx, step.stage)
    with ctx.progress(step.stage, len(missing)) as bar:
        for some in rounds(missing, ctx.resources):
            for table in embed(job, files, some, ctx.resources):
                counts = Counter({item["status"]: item["rows"] for item in table.to_pylist()})
                bar.update(counts.total())
                judge(counts)
            compact(ctx, step, ctx.row_ids)


def finished_table(ctx: RunContext, step: Step) -> Outcome:
    """Check that every image has its row."""
    place = ctx.place(step)
    check_rows(place.uri, rows.row_ids(part_files(place)), ctx.row_ids, exact=False)
    ctx.forget_statuses(step.stage)
    ok, counts = ctx.statuses(step.stage)
    return Outcome(len(ctx.row_ids), counts, Covers(manifest=ctx.manifest.fingerprint), f"{len(ok)} ok")


STAGE = Stage(
    name="embed",
    folder="embeddings",
    keeps=Keeps.ROWS,
    recipe=recipe,
    run=run,
    help="stream the pictures through the encoder",
    facts=Covers,
    table="embeddings",
    after=lambda ctx: check_all(ctx, "embed"),
)
