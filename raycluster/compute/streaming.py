"""Run Ray Data quietly and within limits, and end its execution with the run that it belongs to.

Ray Data takes a second to import, so it is imported when it is needed: tasks that do not stream start without it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from raycluster.compute import work


@contextmanager
def streaming(object_store_bytes: int, cpus: float | None = None, ordered: bool = False) -> Iterator[None]:
    """Context that limits what Ray Data keeps in flight and the cores it uses (default: all); `ordered` keeps the order of the rows."""
    import ray.data

    from raycluster.compute import executions

    # A stage prints one line, and Ray Data would add its plan and more. Its loggers are set up when it is imported, so this comes after.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    # These would print pages about an error that also comes as an exception, and ask the user to open an issue with Ray.
    for name in ("_internal.execution.streaming_executor_state", "exceptions"):
        logging.getLogger(f"ray.data.{name}").setLevel(logging.CRITICAL)
    # This would warn, at every stage with GPUs, that an operator which reserves CPUs beside a GPU is experimental. If we gave no number of
    # CPUs, Ray Data would reserve a core for each GPU, and on nodes with few cores nothing would be left for decoding.
    logging.getLogger("ray.data._internal.execution.operators.map_operator").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    # Otherwise an error of raycluster, such as one about a storage that is down, would arrive only as text.
    context.raise_original_map_exception = True
    context.execution_options.preserve_order = ordered
    context.execution_options.resource_limits = ray.data.ExecutionResources(
        cpu=cpus, object_store_memory=object_store_bytes
    )
    end = executions.noted(context)
    try:
        with work.ending(end), ray.data.DataContext.current(context):
            yield
            # An execution that was ended from outside looks as if it were complete.
            work.check()
    finally:
        executions.forget(context)
