"""Test how ready-made embeddings are listed and imported: their order, their hashes, and rows that hold no usable embedding."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raycluster.encoder import ready_made
from raycluster.errors import ConfigError
from raycluster.images.listing.manifest import number_rows
from raycluster.storage.location import Location, locate, read_table
from raycluster.tables.files import part_files

GOOD: list[Any] = [[1.0, 2.0], None, [np.nan, 1.0], [0.0, 0.0], [3.0, 4.0], [1e9, 1.0], [0.5, -0.5]]
REASONS = [None, "the embedding is null", "NaN", "the embedding is zero", None, "beyond float16", None]


def write(folder: Path, name: str, ids: list[str], embeddings: list[Any], kind: pa.DataType) -> None:
    folder.mkdir(exist_ok=True)
    table = pa.table({"image_id": ids, "embedding": pa.array(embeddings, pa.list_(kind))})
    locate(str(folder / name)).write_table(table)


@pytest.fixture(params=[pa.float32(), pa.float64()], ids=str)
def files(request: pytest.FixtureRequest, tmp_path: Path) -> list[Location]:
    """Two files, the first of which begins with a null."""
    write(tmp_path / "in", "a.parquet", ["z", "y"], [None, [7.0, 8.0]], request.param)
    write(tmp_path / "in", "b.parquet", list("abcdefg"), GOOD, request.param)
    return locate(str(tmp_path / "in")).list(".parquet")


def test_rows_keep_the_order_of_the_files_and_hash_the_bytes_of_their_vector(files: list[Location]) -> None:
    listed = ready_made.list_provided(files)
    assert listed.column("image_id").to_pylist() == [*"zy", *"abcdefg"]
    values = read_table([files[1]]).column("embedding").combine_chunks()
    hashed = [
        hashlib.sha256(value.values.to_numpy(zero_copy_only=False).tobytes()).hexdigest()[:16]
        if value.is_valid
        else None
        for value in values
    ]
    assert listed.column("etag").to_pylist()[2:] == hashed


@pytest.mark.parametrize("batch", [1, 2, 4096])
def test_every_row_has_its_embedding_or_a_reason(
    batch: int, files: list[Location], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready_made, "BATCH", batch)
    manifest = number_rows(ready_made.list_provided(files), None, 0)
    folder = locate(str(tmp_path / "table"))
    # Rows 3 and 4 are there already.
    assert sum(ready_made.import_provided(files, manifest, np.array([3, 4]), folder)) == 7
    rows = read_table(part_files(folder)).sort_by("row_id").to_pylist()
    assert [row["row_id"] for row in rows] == [0, 1, 2, 5, 6, 7, 8]
    expected = [REASONS[1], None, *(reason for i, reason in enumerate(REASONS) if i not in (1, 2))]
    for row, reason in zip(rows, expected, strict=True):
        assert row["status"] == ("ok" if reason is None else "failed")
        assert (row["embedding"] is None) == (reason is not None)
        assert reason is None or reason in row["error"]
    assert rows[1]["embedding"] == [7.0, 8.0]
    assert rows[-1]["embedding"] == [0.5, -0.5]


def test_rows_that_came_after_the_listing_are_left_to_the_next_one(files: list[Location], tmp_path: Path) -> None:
    manifest = number_rows(ready_made.list_provided(files[:1]), None, 0)
    folder = locate(str(tmp_path / "table"))
    assert sum(ready_made.import_provided(files, manifest, np.empty(0, np.int64), folder)) == 2
    assert sorted(read_table(part_files(folder)).column("image_id").to_pylist()) == ["y", "z"]


@pytest.mark.parametrize("second", [[[1.0, 2.0, 3.0]], [[1.0, 2.0], [1.0]]], ids=["of files", "of rows"])
def test_different_lengths_are_refused(second: list[Any], tmp_path: Path) -> None:
    write(tmp_path / "in", "a.parquet", ["z"], [[7.0, 8.0]], pa.float32())
    write(tmp_path / "in", "b.parquet", [f"b{i}" for i in range(len(second))], second, pa.float32())
    files = locate(str(tmp_path / "in")).list(".parquet")
    with pytest.raises(ConfigError, match=r"b\.parquet: the embeddings have different lengths"):
        ready_made.list_provided(files)
