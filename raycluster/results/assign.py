"""The assign stage: every image of the manifest gets a cluster, or a status that says why it has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from raycluster.compute.node_checks import Common
from raycluster.compute.tasks import file_groups, map_tasks
from raycluster.methods.base import Method
from raycluster.model.novelty import Novelty
from raycluster.model.prediction import outliers, probabilities, top_two
from raycluster.storage.location import Location, read_table
from raycluster.tables.files import part_name
from raycluster.tables.rows import among, vectors
from raycluster.tables.schemas import ASSIGNMENTS, NEW_ASSIGNMENTS


def assign(
    method: Method,
    embeddings: list[Location],
    manifest: pa.Table,
    done: np.ndarray,
    folder: Location,
    common: Common,
    novelty: Novelty | None = None,
) -> Iterator[Counter[str]]:
    """Assign the manifest's rows that are not in `done`, and yield the status counts of each finished task.

    `manifest`: columns row_id, image_id, uri; `done`: row ids that the table already holds; `common`: what the nodes must have.
    With `novelty`, outliers are flagged.
    """
    rows = manifest.filter(~np.isin(manifest.column("row_id").to_numpy(), done))
    if not len(rows):
        return
    shared = ray.put(rows.sort_by("row_id").combine_chunks())
    known = ray.put((method.cpu().eval(), novelty))

    def assign_parts(files: list[Location], known: tuple[Method, Novelty | None], wanted: pa.Table) -> Counter[str]:
        # Each part of the embeddings gives one part here. No two parts hold the same row, because no two embedding parts do.
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
    """Return assignments (schema ASSIGNMENTS, with `novelty` NEW_ASSIGNMENTS) of those rows of an embeddings table that are in `wanted`.

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
