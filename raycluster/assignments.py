"""The assign stage: every image of the manifest gets its cluster, or the status that says why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from raycluster.clustering.novelty import Novelty
from raycluster.distributed import file_groups, map_tasks
from raycluster.methods.base import Method
from raycluster.node_checks import Common
from raycluster.prediction import outliers, probabilities, top_two
from raycluster.rows import among, vectors
from raycluster.run_folder import part_name
from raycluster.storage import Location, read_table
from raycluster.tables import ASSIGNMENTS, NEW_ASSIGNMENTS


def assign(
    method: Method,
    embeddings: list[Location],
    manifest: pa.Table,
    done: np.ndarray,
    folder: Location,
    common: Common,
    novelty: Novelty | None = None,
) -> Iterator[Counter[str]]:
    """Assign the manifest's rows that are not in `done`; yields the status counts of each finished task.

    `manifest`: columns row_id, image_id, uri; `done`: row ids already in this table; with `novelty`, outliers are flagged;
    `common`: what the nodes must have.
    """
    rows = manifest.filter(~np.isin(manifest.column("row_id").to_numpy(), done))
    if not len(rows):
        return
    shared = ray.put(rows.sort_by("row_id").combine_chunks())
    known = ray.put((method.cpu().eval(), novelty))

    def assign_parts(files: list[Location], known: tuple[Method, Novelty | None], wanted: pa.Table) -> Counter[str]:
        # A part of its own for each embedding part: a row lies in one of those only.
        counts: Counter[str] = Counter()
        for file in files:
            part = assign_rows(known[0], read_table([file]), wanted, known[1])
            if len(part):
                (folder / part_name(part.column("row_id"))).write_table(part)
                counts.update(
                    {item["values"]: item["counts"] for item in part.column("status").value_counts().to_pylist()}
                )
        return counts

    yield from map_tasks(assign_parts, file_groups(embeddings), known, shared, common=common)


def assign_rows(method: Method, embeddings: pa.Table, wanted: pa.Table, novelty: Novelty | None = None) -> pa.Table:
    """Assignments (schema ASSIGNMENTS, with `novelty` NEW_ASSIGNMENTS) of those rows of an embeddings table that are in `wanted`.

    `wanted`: columns row_id (ascending), image_id, uri. Rows whose status is not `ok` have nulls for the prediction.
    """
    keep, place = among(embeddings.column("row_id").to_numpy(), wanted.column("row_id").to_numpy())
    embeddings, source = embeddings.filter(pa.array(keep)), wanted.take(pa.array(place))
    status = embeddings.column("status")
    ok = pc.equal(status, "ok").to_numpy()
    schema = ASSIGNMENTS if novelty is None else NEW_ASSIGNMENTS
    columns = [np.zeros(len(ok), field.type.to_pandas_dtype()) for field in schema][4:]
    if ok.any():
        good = vectors(embeddings.filter(pa.array(ok)))
        values = [*top_two(probabilities(method, good)), *([] if novelty is None else [outliers(novelty, good)])]
        for column, value in zip(columns, values, strict=True):
            column[ok] = value
    given = [source.column(name) for name in ("row_id", "image_id", "uri")]
    return pa.table([*given, status, *(pa.array(column, mask=~ok) for column in columns)], names=schema.names).cast(
        schema
    )
