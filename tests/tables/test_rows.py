"""Test that ids, statuses, vectors and failures of rows are read from Parquet tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raycluster.storage.location import Location, locate
from raycluster.tables.rows import failed, failures, gather, row_ids, statuses
from raycluster.tables.schemas import embeddings_schema


@pytest.fixture
def files(tmp_path: Path) -> list[Location]:
    """Two parts; rows 4 and 7 failed; row 9 is of an image that is gone."""
    folder = locate(str(tmp_path))
    for name, ids in (("part-1.parquet", [1, 4, 2]), ("part-3.parquet", [3, 7, 9])):
        bad = {4: "missing", 7: "empty"}
        rows = {
            "row_id": ids,
            "image_id": [f"image {i}" for i in ids],
            "status": [bad.get(i, "ok") for i in ids],
            "error": [f"reason {i}" if i in bad else None for i in ids],
            "width": [8] * 3,
            "height": [8] * 3,
            "content": [None] * 3,
            "embedding": [None if i in bad else [i, -i] for i in ids],
        }
        (folder / name).write_table(pa.table(rows).cast(embeddings_schema(2)))
    return folder.list(suffix=".parquet")


def test_ids_and_statuses_of_the_wanted_rows(files: list[Location]) -> None:
    assert sorted(row_ids(files)) == [1, 2, 3, 4, 7, 9]
    ok, counts = statuses(files, np.array([1, 2, 3, 4, 7]))
    assert ok.tolist() == [1, 2, 3]
    assert counts == {"ok": 3, "missing": 1, "empty": 1}


def test_gather_brings_vectors_in_the_order_asked(files: list[Location]) -> None:
    vectors = gather(files, np.array([2, 3, 9]))
    assert vectors.dtype == np.float16
    assert vectors.tolist() == [[2, -2], [3, -3], [9, -9]]
    with pytest.raises(KeyError, match="1 of 2 rows have no embedding"):
        gather(files, np.array([2, 5]))


def test_failures_come_with_uri_and_reason(files: list[Location], tmp_path: Path) -> None:
    manifest = [locate(str(tmp_path / "manifest" / name)) for name in ("part-1.parquet", "part-7.parquet")]
    manifest[0].write_table(pa.table({"row_id": [4, 1], "uri": ["s3://b/4", "s3://b/1"]}))
    manifest[1].write_table(pa.table({"row_id": [7], "uri": ["s3://b/7"]}))
    found = {"missing": [("s3://b/4", "reason 4")], "empty": [("s3://b/7", "reason 7")]}
    assert failures(files, np.array([1, 4, 7]), manifest) == found
    assert failures(files, np.array([1, 7]), manifest) == {"empty": found["empty"]}
    assert failures(files, np.array([1]), manifest) == {}


def test_failed_rows_are_those_that_are_not_ok(files: list[Location]) -> None:
    assert sorted(failed(files)) == [4, 7]
    assert failed([]).tolist() == []
