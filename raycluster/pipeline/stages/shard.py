"""Store all pictures in few large files, so that later passes read little.

Libraries that are slow to import are imported in the functions that use them, so that `raycluster --help` answers at once.
"""

from __future__ import annotations

import numpy as np

from raycluster.pipeline.context import RunContext
from raycluster.pipeline.failures import check_all, failure_gate
from raycluster.pipeline.stage import Covers, Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.stages.embed import picture_limits
from raycluster.pipeline.step import Step
from raycluster.tables import rows
from raycluster.tables.files import part_files
from raycluster.tables.gates import check_rows


class ShardFacts(Covers):
    """What sharding leaves."""

    size: int = 0
    """Shortest side of the pictures, in pixels."""


def recipe(ctx: RunContext) -> Recipe | None:
    """The size of the stored pictures, and which pictures are stored."""
    if ctx.shard_size is None:
        return None
    return Recipe({"size": ctx.shard_size, **picture_limits(ctx.config)})


def run(ctx: RunContext, step: Step) -> Outcome:
    """Store the pictures that are in the manifest and not in the table, checked and made smaller."""
    from raycluster.images.shards import ShardJob, shard

    place, size = ctx.place(step), ctx.shard_size
    assert size is not None
    job = ShardJob(size, ctx.config.encoder, ctx.config.storage, place)
    missing, judge = np.setdiff1d(ctx.row_ids, rows.row_ids(part_files(place))), failure_gate(ctx, "shard")
    with ctx.progress("shard", len(missing)) as bar:
        for counts in shard(job, ctx.part_files("manifest"), missing, ctx.resources):
            bar.update(counts.total())
            judge(counts)
    check_rows(place.uri, rows.row_ids(part_files(place)), ctx.row_ids, exact=False)
    ctx.forget_statuses("shard")
    ok, statuses = ctx.statuses("shard")
    facts = ShardFacts(manifest=ctx.manifest.fingerprint, size=size)
    return Outcome(len(ctx.row_ids), statuses, facts, f"{len(ok)} ok, shortest side {size} pixels")


STAGE = Stage(
    name="shard",
    folder="shards",
    keeps=Keeps.ROWS,
    recipe=recipe,
    run=run,
    help="rewrite many small pictures as few large Parquet files (with `shards.enabled`)",
    facts=ShardFacts,
    table="shards",
    switch="shards.enabled",
    after=lambda ctx: check_all(ctx, "shard"),
)
