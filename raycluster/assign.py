"""The assign stage: every image of the manifest gets its cluster, or the status that says why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from raycluster.distributed import file_groups, map_tasks
from raycluster.methods.base import Method
from raycluster.model import probabilities, top_two
from raycluster.rows import among, vectors
from raycluster.run_folder import part_name
from raycluster.storage import Location, read_table
from raycluster.tables import ASSIGNMENTS


def assign(
    method: Method, embeddings: list[Location], manifest: pa.Table, done: np.ndarray, folder: Location
) -> Iterator[Counter[str]]:
    """Assign the manifest's rows that are not in `done`; yields the status counts of each finished task.

    `manifest`: columns row_id, image_id, uri; `done`: row ids already in this table.
    """
    rows = manifest.filter(~np.isin(manifest.column("row_id").to_numpy(), done))
    if not len(rows):
        return
    shared = ray.put(rows.sort_by("row_id").combine_chunks())
    heads = ray.put(method.cpu().eval())

    def assign_parts(files: list[Location], heads: Method, wanted: pa.Table) -> Counter[str]:
        # A part of its own for each embedding part: a row lies in one of those only.
        counts: Counter[str] = Counter()
        for file in files:
            part = assign_rows(heads, read_table([file]), wanted)
            if len(part):
                (folder / part_name(part.column("row_id"))).write_table(part)
                counts.update(
                    {item["values"]: item["counts"] for item in part.column("status").value_counts().to_pylist()}
                )
        return counts

    yield from map_tasks(assign_parts, file_groups(embeddings), heads, shared)


def assign_rows(method: Method, embeddings: pa.Table, wanted: pa.Table) -> pa.Table:
    """Assignments (schema ASSIGNMENTS) of those rows of an embeddings table that are in `wanted`.

    `wanted`: columns row_id (ascending), image_id, uri. Rows whose status is not `ok` have nulls for the prediction.
    """
    keep, place = among(embeddings.column("row_id").to_numpy(), wanted.column("row_id").to_numpy())
    embeddings, source = embeddings.filter(pa.array(keep)), wanted.take(pa.array(place))
    status = embeddings.column("status")
    ok = pc.equal(status, "ok").to_numpy()
    columns = [np.zeros(len(ok), dtype) for dtype in (np.int32, np.float32, np.float32, np.int32)]
    if ok.any():
        for column, values in zip(
            columns, top_two(probabilities(method, vectors(embeddings.filter(pa.array(ok))))), strict=True
        ):
            column[ok] = values
    cluster, confidence, margin, runner_up = (pa.array(column, mask=~ok) for column in columns)
    return pa.table(
        [
            source.column("row_id"),
            source.column("image_id"),
            source.column("uri"),
            status,
            cluster,
            confidence,
            margin,
            runner_up,
        ],
        names=ASSIGNMENTS.names,
    ).cast(ASSIGNMENTS)
