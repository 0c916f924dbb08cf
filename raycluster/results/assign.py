"""The assign stage: every image of the manifest gets a cluster, or a status that says why it has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from raycluster.compute.resources import Resources
from raycluster.compute.tasks import file_groups, map_tasks
from raycluster.methods.base import Method
from raycluster.model.novelty import Novelty
from raycluster.model.prediction import outliers, probabilities, top_two
from raycluster.storage.location import Location, read_table
from raycluster.tables.files import write_pieces
from raycluster.tables.rows import among, find_spans, rows_by_id, vectors, wanted_by_file
from raycluster.tables.schemas import ASSIGNMENTS, NEW_ASSIGNMENTS


def assign(
    method: Method,
    embeddings: list[Location],
    manifest: list[Location],
    wanted: np.ndarray,
    folder: Location,
    resources: Resources,
    novelty: Novelty | None = None,
) -> Iterator[Counter[str]]:
    """Assign the rows `wanted` (ids, ascending) and yield the status counts of each finished task.

    `manifest`: its part files, from which each task reads the rows of its embeddings. With `novelty`, outliers are flagged.
    """
    spans = find_spans(manifest)
    known = ray.put((method.cpu().eval(), novelty))

    def assign_parts(
        files: Sequence[tuple[Location, np.ndarray]], known: tuple[Method, Novelty | None]
    ) -> Counter[str]:
        # Each file of the embeddings gives its own files here. No two of them hold the same row, because no two embedding files do.
        counts: Counter[str] = Counter()
        for file, wanted in files:
            embedded = read_table([file])
            ids = embedded.column("row_id").to_numpy()
            ids = np.sort(ids[among(ids, wanted)[0]])
            if len(ids):
                part = assign_rows(known[0], embedded, rows_by_id(spans, ids, ["image_id", "uri"]), known[1])
                write_pieces(folder, part)
                counts.update(
                    {item["values"]: item["counts"] for item in part.column("status").value_counts().to_pylist()}
                )
        return counts

    groups = file_groups(wanted_by_file(embeddings, wanted), resources.cpus)
    yield from map_tasks(assign_parts, groups, known, common=resources.common)


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
