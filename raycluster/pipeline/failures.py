"""The failure gate of the stages that read every picture: while they run, and when they are done.

Libraries that are slow to import are imported in the functions that use them, so that `raycluster --help` answers at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from raycluster.pipeline.context import RunContext
from raycluster.tables import rows
from raycluster.tables.gates import check_failures


def failure_gate(ctx: RunContext, stage: str) -> Callable[[Counter[str]], None]:
    """The gate while a stage runs: a function that takes the status counts of each new part.

    It raises :class:`DataQualityError` as soon as more images have failed than may fail of all. Without it a bucket of which half cannot be
    read would cost the whole stage before anybody hears of it.
    """
    from raycluster.compute import work

    tried = Counter(rows.statuses(ctx.part_files(stage), ctx.row_ids)[1])
    total, allowed = len(ctx.row_ids), ctx.config.max_failed_fraction

    def judge(counts: Counter[str]) -> None:
        work.check()
        tried.update(counts)
        if tried.total() - tried["ok"] > allowed * total:
            examples = rows.failures(ctx.part_files(stage), ctx.row_ids, ctx.part_files("manifest"))
            check_failures(tried, examples, allowed, total)

    judge(Counter())
    return judge


def check_all(ctx: RunContext, stage: str) -> None:
    """The gate after the stage, whether it ran or was skipped: a limit that was raised must let a finished table pass."""
    counts = ctx.statuses(stage)[1]
    check_failures(counts, ctx.failures(stage), ctx.config.max_failed_fraction)
    failed = {status: n for status, n in sorted(counts.items()) if status != "ok"}
    if failed:
        histogram = ", ".join(f"{status} {n}" for status, n in failed.items())
        ctx.warn(f"{sum(failed.values())} of {sum(counts.values())} images could not be read: {histogram}")
