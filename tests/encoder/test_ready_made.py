"""Test how ready-made embeddings are listed and imported: their order, their hashes, and rows that hold no usable embedding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raycluster.encoder import ready_made
from raycluster.errors import ConfigError
from raycluster.images.listing.numbering import number_rows
from raycluster.storage.location import Location, locate, read_table
from raycluster.tables.files import part_files, write_partitions
from raycluster.tables.rows import find_spans, vector_column, vectors

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
    listed = ready_made.list_provided(files).rows.read()
    assert listed.column("image_id").to_pylist() == [*"zy", *"abcdefg"]
    values = read_table([files[1]]).column("embedding").combine_chunks()
    hashed = [
        hashlib.sha256(value.values.to_numpy(zero_copy_only=False).tobytes()).hexdigest()[:16]
        if value.is_valid
        else None
        for value in values
    ]
    assert listed.column("etag").to_pylist()[2:] == hashed


def imported(
    files: list[Location], tmp_path: Path, folder: Location, wanted: np.ndarray, then: Callable[[], None] = lambda: None
) -> int:
    """List the files, call `then`, and import the rows `wanted`; return the number of imported rows."""
    listing = ready_made.list_provided(files)
    numbered = number_rows(listing.rows)
    for rows in numbered.partitions():
        write_partitions(locate(str(tmp_path / "manifest")), rows)
    spans = find_spans(part_files(locate(str(tmp_path / "manifest"))))
    then()
    provided = ready_made.Provided(listing.slices, numbered.row_ids, listing.dim)
    return sum(ready_made.import_slice(some, provided.dim, spans, folder) for some in provided.missing(wanted))


@pytest.mark.parametrize("batch", [1, 2, 4096])
def test_every_row_has_its_embedding_or_a_reason(
    batch: int, files: list[Location], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready_made, "PIECE_ROWS", batch)
    folder = locate(str(tmp_path / "table"))
    # Rows 3 and 4 are there already.
    assert imported(files, tmp_path, folder, np.array([0, 1, 2, 5, 6, 7, 8])) == 7
    rows = read_table(part_files(folder)).sort_by("row_id").to_pylist()
    assert [row["row_id"] for row in rows] == [0, 1, 2, 5, 6, 7, 8]
    expected = [REASONS[1], None, *(reason for i, reason in enumerate(REASONS) if i not in (1, 2))]
    for row, reason in zip(rows, expected, strict=True):
        assert row["status"] == ("ok" if reason is None else "failed")
        assert (row["embedding"] is None) == (reason is not None)
        assert reason is None or reason in row["error"]
    assert rows[1]["embedding"] == [7.0, 8.0]
    assert rows[-1]["embedding"] == [0.5, -0.5]


def test_only_the_slices_with_wanted_rows_are_read(files: list[Location], tmp_path: Path) -> None:
    folder = locate(str(tmp_path / "table"))
    assert imported(files, tmp_path, folder, np.array([0, 1]), then=files[1].delete) == 2
    assert sorted(read_table(part_files(folder)).column("image_id").to_pylist()) == ["y", "z"]


def test_a_large_file_is_cut_into_slices_of_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready_made, "SLICE_ROWS", 25)
    file = locate(str(tmp_path / "in" / "a.parquet"))
    values = np.random.default_rng(0).standard_normal((101, 2)).astype(np.float16)
    table = pa.table({"image_id": [f"{i}" for i in range(101)], "embedding": vector_column(values)})
    file.write_table(table, row_group_size=10)
    listing = ready_made.list_provided([file])
    assert [(len(each.groups), each.rows) for each in listing.slices] == [(3, 30), (2, 20), (3, 30), (2, 20), (1, 1)]
    assert listing.rows.read().column("image_id").to_pylist() == table.column("image_id").to_pylist()
    folder = locate(str(tmp_path / "table"))
    assert imported([file], tmp_path, folder, np.arange(101)) == 101
    rows = read_table(part_files(folder)).sort_by("row_id")
    assert np.array_equal(vectors(rows), values)


@pytest.mark.parametrize("change", ["other ids", "fewer rows", "more row groups"])
def test_a_file_that_changes_after_the_listing_is_refused(change: str, tmp_path: Path) -> None:
    write(tmp_path / "in", "a.parquet", list("abcdefg"), GOOD, pa.float32())
    file = locate(str(tmp_path / "in" / "a.parquet"))
    before = read_table([file])
    changed = {
        "other ids": lambda: file.write_table(before.set_column(0, "image_id", [list("abcdefx")])),
        "fewer rows": lambda: file.write_table(before.slice(1)),
        "more row groups": lambda: file.write_table(before, row_group_size=2),
    }[change]
    with pytest.raises(ConfigError, match=r"a\.parquet has changed since its rows were listed; run again"):
        imported([file], tmp_path, locate(str(tmp_path / "table")), np.arange(7), then=changed)


def test_an_id_that_is_absent_or_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "in", "a.parquet", ["a", None], [[7.0, 8.0]] * 2, pa.float32())  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"a\.parquet: some rows have no image_id"):
        ready_made.list_provided(locate(str(tmp_path / "in")).list(".parquet"))
    write(tmp_path / "in", "a.parquet", ["a", "b", "a"], [[7.0, 8.0]] * 3, pa.float32())
    with pytest.raises(ConfigError, match=r"embeddings: 1 image_ids occur more than once: 'a' \(2 times: a, a\); make"):
        ready_made.list_provided(locate(str(tmp_path / "in")).list(".parquet"))


@pytest.mark.parametrize("second", [[[1.0, 2.0, 3.0]], [[1.0, 2.0], [1.0]]], ids=["of files", "of rows"])
def test_different_lengths_are_refused(second: list[Any], tmp_path: Path) -> None:
    write(tmp_path / "in", "a.parquet", ["z"], [[7.0, 8.0]], pa.float32())
    write(tmp_path / "in", "b.parquet", [f"b{i}" for i in range(len(second))], second, pa.float32())
    files = locate(str(tmp_path / "in")).list(".parquet")
    with pytest.raises(ConfigError, match=r"b\.parquet: the embeddings have different lengths"):
        ready_made.list_provided(files)
