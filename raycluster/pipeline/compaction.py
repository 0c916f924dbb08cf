"""Make one file a partition of the pieces that a stage has written.

Ray is slow to import, so it is imported in the function that uses it: `raycluster --help` must answer at once.
"""

from __future__ import annotations

import numpy as np

from raycluster.pipeline.context import RunContext
from raycluster.pipeline.step import Step
from raycluster.storage.location import delete_files
from raycluster.tables.compaction import merge, plan_merges


def compact(ctx: RunContext, step: Step, expected: np.ndarray) -> None:
    """Compact the partitions of a step's table whose rows `expected` (ids, ascending) are all there.

    Call it before a stage goes on and when it is done, while no task writes to the table.
    """
    merges, stale = plan_merges(ctx.place(step), expected)
    # These are left over from a merge that was killed. They go first, because a merge gives the next generation to a partition.
    delete_files(stale)
    if merges:
        from raycluster.compute.tasks import map_tasks

        for _ in map_tasks(merge, merges, common=ctx.resources.common):
            pass
