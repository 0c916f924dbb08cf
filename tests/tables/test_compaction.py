"""Test that pieces become one file a partition, and that a kill at any moment of it loses no row and doubles none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from kill_points import Killed, killed_at

from raycluster.config import StorageConfig
from raycluster.errors import DataQualityError
from raycluster.storage.location import Location, locate, read_table
from raycluster.tables.compaction import merge, plan_merges
from raycluster.tables.files import part_files, split_files, write_partitions, write_pieces
from raycluster.tables.footers import read_footer
from raycluster.tables.names import PARTITION_ROWS, part_name
from raycluster.tables.rows import find_spans, row_ids, rows_by_id, statuses


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder of a table."""
    if request.param == "disk":
        return locate(str(tmp_path / "table"))
    storage: StorageConfig = request.getfixturevalue("s3")
    return locate(f"s3://raycluster-test/compaction-{tmp_path.name}-{id(tmp_path)}", storage)


def table(ids: Any, failed: tuple[int, ...] = ()) -> pa.Table:
    ids = np.asarray(ids, np.int64)
    return pa.table({"row_id": ids, "status": ["empty" if i in failed else "ok" for i in ids], "twice": ids * 2})


def ids_of(folder: Location) -> list[int]:
    """The ids that a reader of the columns finds, in ascending order."""
    return sorted(read_table(part_files(folder)).column("row_id").to_pylist()) if part_files(folder) else []


def compact(folder: Location, expected: np.ndarray) -> None:
    """What the stages do, without Ray."""
    merges, stale = plan_merges(folder, expected)
    for file in stale:
        file.delete()
    for work in merges:
        merge(work)


def test_a_partition_is_one_file_when_all_its_rows_are_there(folder: Location) -> None:
    write_pieces(folder, table(range(10, 40), failed=(12,)))
    write_pieces(folder, table(range(10)))
    expected = np.arange(50)
    compact(folder, expected)
    assert [file.name for file in part_files(folder)] == [part_name(np.arange(10)), part_name(np.arange(10, 40))]
    write_pieces(folder, table([*range(49, 39, -1)]))
    compact(folder, expected)
    (file,) = folder.list()
    assert file.name == "partition-00000000-0.parquet"
    assert read_table([file]).column("row_id").to_pylist() == list(range(50))
    footer = read_footer(file)
    assert footer is not None
    assert footer.ranges.tolist() == [[0, 50]]
    assert footer.statuses == {"ok": 49, "empty": 1}
    ok, counts = statuses(part_files(folder), expected)
    assert counts == {"ok": 49, "empty": 1}
    assert ok.tolist() == [i for i in range(50) if i != 12]


def test_added_rows_make_another_generation_and_removed_ones_stay(folder: Location) -> None:
    write_pieces(folder, table([0, 1, 5, 7]))
    compact(folder, np.array([0, 1, 5, 7]))
    write_pieces(folder, table([8, 9]))
    assert ids_of(folder) == [0, 1, 5, 7, 8, 9]
    compact(folder, np.array([0, 5, 7, 8, 9]))  # row 1 is of an image that is gone
    (file,) = folder.list()
    assert file.name == "partition-00000000-1.parquet"
    assert ids_of(folder) == sorted(row_ids([file])) == [0, 1, 5, 7, 8, 9]


def test_a_block_at_the_border_of_partitions_becomes_two_pieces(folder: Location) -> None:
    border = PARTITION_ROWS
    write_pieces(folder, table(range(border - 3, border + 3)))
    assert [file.name for file in part_files(folder)] == [
        part_name(np.arange(border - 3, border)),
        part_name(np.arange(border, border + 3)),
    ]
    compact(folder, np.arange(border - 3, border + 3))
    assert [file.name for file in folder.list()] == ["partition-00000000-0.parquet", "partition-00000001-0.parquet"]


def test_pieces_of_an_earlier_version_are_compacted_and_those_that_cross_a_border_stay(folder: Location) -> None:
    """They have no footer of ours."""
    for ids in (range(100), range(100, 200), range(PARTITION_ROWS - 9, PARTITION_ROWS + 9)):
        (folder / f"part-{ids[0]:012d}.parquet").write_table(table(ids))
    expected = np.r_[np.arange(200), np.arange(PARTITION_ROWS - 9, PARTITION_ROWS + 9)]
    compact(folder, expected)
    assert len(part_files(folder)) == 3  # partition 0 has rows in the piece that crosses
    assert ids_of(folder) == sorted(row_ids(part_files(folder))) == expected.tolist()
    (folder / f"part-{PARTITION_ROWS - 9:012d}.parquet").delete()
    compact(folder, np.arange(200))
    assert [file.name for file in folder.list()] == ["partition-00000000-0.parquet"]


def test_a_column_that_earlier_pieces_lack_is_null_there(folder: Location) -> None:
    (folder / "part-000000000000.parquet").write_table(table(range(3)))
    write_pieces(folder, table(range(3, 5)).append_column("content", pa.array([b"a", b"b"])))
    compact(folder, np.arange(5))
    assert read_table(part_files(folder)).column("content").to_pylist() == [None, None, None, b"a", b"b"]


@pytest.mark.parametrize("grown", [False, True], ids=["pieces", "pieces beside an earlier generation"])
def test_a_kill_at_any_moment_loses_no_row_and_doubles_none(
    grown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, moments = np.arange(60), 0
    for step in range(1, 100):
        folder = locate(str(tmp_path / str(step)))
        if grown:
            write_pieces(folder, table(range(20)))
            compact(folder, np.arange(20))
        for start in range(20 if grown else 0, 60, 10):
            write_pieces(folder, table(range(start, start + 10)))
        try:
            with killed_at(step, monkeypatch):
                compact(folder, expected)
        except Killed:
            moments += 1
        else:
            break
        assert ids_of(folder) == expected.tolist(), step
        compact(folder, expected)
        names = [file.name for file in folder.list(suffix=".parquet")]
        assert names == [f"partition-00000000-{int(grown)}.parquet"], step
        assert ids_of(folder) == expected.tolist(), step
    assert moments >= 10


def test_a_merge_that_is_called_again_after_a_kill_ends_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray calls a task again if its worker or node dies."""
    for step in range(1, 100):
        folder = locate(str(tmp_path / str(step)))
        for start in range(0, 40, 10):
            write_pieces(folder, table(range(start, start + 10)))
        ((work,), _) = plan_merges(folder, np.arange(40))
        try:
            with killed_at(step, monkeypatch):
                merge(work)
        except Killed:
            merge(work)
        else:
            break
        assert [file.name for file in folder.list(suffix=".parquet")] == ["partition-00000000-0.parquet"], step
        assert ids_of(folder) == list(range(40)), step
    assert step == 11  # before and after one write and four deletes


def test_a_table_of_many_partitions_is_cut_in_any_order(folder: Location) -> None:
    ids = np.random.default_rng(0).permutation(np.arange(0, 5 * PARTITION_ROWS, 500))
    write_partitions(folder, table(ids))
    for file in part_files(folder):
        rows = read_table([file])
        held = rows.column("row_id").to_numpy()
        assert (np.diff(held) > 0).all()
        assert len(np.unique(held // PARTITION_ROWS)) == 1
        assert np.array_equal(rows.column("twice").to_numpy(), 2 * held)
    assert ids_of(folder) == sorted(ids.tolist())


def test_files_that_do_not_count_are_told_from_those_that_do(folder: Location) -> None:
    write_partitions(folder, table(range(30)))
    write_pieces(folder, table([3, 4]))  # left over from a merge that was killed
    write_pieces(folder, table([30, 31]))
    (folder / "nouns.parquet").write_table(table([0]))
    counting, stale = split_files(folder.list())
    assert [file.name for file in counting] == [part_name(np.array([30, 31])), "partition-00000000-0.parquet"]
    assert [file.name for file in stale] == [part_name(np.array([3, 4]))]


def test_a_row_that_is_there_twice_stops_the_merge_and_nothing_is_deleted(folder: Location) -> None:
    for ids in ([1, 2, 3], [2, 4]):
        (folder / f"part-{ids[0]:012d}.parquet").write_table(table(ids))
    ((work,), _) = plan_merges(folder, np.arange(1, 5))
    with pytest.raises(DataQualityError, match=r"partition-00000000-0.*: .* but 1 rows occur twice \(row_id 2\)"):
        merge(work)
    assert len(folder.list()) == 2


def test_rows_are_read_by_their_ids_from_the_files_that_hold_them(folder: Location) -> None:
    write_partitions(folder, table(np.arange(0, 3 * PARTITION_ROWS, 1000)))
    spans = find_spans(part_files(folder))
    assert len(spans) == 3
    found = rows_by_id(spans, np.array([2000, 20_000, 21_000]), ["twice"])
    assert found.column("twice").to_pylist() == [4000, 40_000, 42_000]
    with pytest.raises(KeyError, match="1 of 2 rows"):
        rows_by_id(spans, np.array([2000, 2001]), ["twice"])
