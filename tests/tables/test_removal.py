"""Test that a table is written again without some rows, and that a kill at any moment of it loses no other row and doubles none."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kill_points import Killed, killed_at

from raycluster.config import StorageConfig
from raycluster.images.shards import write_groups
from raycluster.storage.location import Location, locate, read_table
from raycluster.tables.compaction import merge, plan_merges
from raycluster.tables.files import part_files, write_partitions, write_pieces
from raycluster.tables.footers import read_footer
from raycluster.tables.names import PARTITION_ROWS, part_name
from raycluster.tables.removal import plan_removals, remove_rows
from raycluster.tables.rows import file_ids, vector_column, vectors
from raycluster.tables.schemas import SHARDS


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder of a table."""
    if request.param == "disk":
        return locate(str(tmp_path / "table"))
    storage: StorageConfig = request.getfixturevalue("s3")
    return locate(f"s3://raycluster-test/removal-{tmp_path.name}-{id(tmp_path)}", storage)


def table(ids: Any, failed: tuple[int, ...] = ()) -> pa.Table:
    ids = np.asarray(ids, np.int64)
    columns = {
        "row_id": ids,
        "image_id": [f"image-{row}" for row in ids],
        "status": ["empty" if row in failed else "ok" for row in ids],
        "embedding": vector_column(np.outer(ids, [1, 2, 3]).astype(np.float16)),
    }
    return pa.table(columns)


def remove(folder: Location, kept: Any) -> int:
    """What the command does, without Ray."""
    removals, stale, _ = plan_removals(folder, np.asarray(kept, np.int64))
    for file in stale:
        file.delete()
    return sum(remove_rows(work) for work in removals)


def ids_of(folder: Location) -> list[int]:
    """The ids that readers find, by footers and by columns."""
    files = part_files(folder)
    by_footers = sorted(row for file in files for row in file_ids(file).tolist())
    assert by_footers == sorted(row for file in files for row in read_table([file]).column("row_id").to_pylist())
    return by_footers


def names(folder: Location) -> list[str]:
    return [file.name for file in folder.list()]


def test_a_partition_gets_another_generation_without_the_rows(folder: Location) -> None:
    write_partitions(folder, table([*range(20), PARTITION_ROWS + 1], failed=(3, 5)))
    kept = [row for row in range(20) if row not in (3, 7)]
    removals, stale, staying = plan_removals(folder, np.array([*kept, PARTITION_ROWS + 1]))
    assert [(work.file.name, work.row_ids.tolist()) for work in removals] == [("partition-00000000-0.parquet", [3, 7])]
    assert (stale, staying) == ([], 19)
    assert remove(folder, [*kept, PARTITION_ROWS + 1]) == 2
    assert names(folder) == ["partition-00000000-1.parquet", "partition-00000001-0.parquet"]
    assert ids_of(folder) == [*kept, PARTITION_ROWS + 1]
    rows = read_table(part_files(folder)[:1])
    np.testing.assert_array_equal(vectors(rows), np.outer(kept, [1, 2, 3]))
    footer = read_footer(part_files(folder)[0])
    assert footer is not None
    assert footer.ranges.tolist() == [[0, 3], [4, 7], [8, 20]]
    assert footer.statuses == {"ok": 17, "empty": 1}
    content = part_files(folder)[0].read_bytes()
    assert b"image-0" in content  # the footer's statistics, which are not compressed
    assert remove(folder, [*kept, PARTITION_ROWS + 1]) == 0


def test_a_file_without_other_rows_is_deleted(folder: Location) -> None:
    write_partitions(folder, table(range(5)))
    write_pieces(folder, table([PARTITION_ROWS]))
    write_pieces(folder, table([PARTITION_ROWS + 8]))
    assert remove(folder, [PARTITION_ROWS + 8]) == 6
    assert names(folder) == [part_name(np.array([PARTITION_ROWS + 8]))]


def test_a_piece_is_named_after_the_rows_that_stay(folder: Location) -> None:
    write_pieces(folder, table(range(10)))
    write_pieces(folder, table(range(10, 20)))
    write_pieces(folder, table(range(20, 30)))
    before = {file.name: file.read_bytes() for file in folder.list()}
    assert remove(folder, [*range(1, 10), *range(10, 15), *range(16, 20), *range(20, 28)]) == 4
    assert names(folder) == [part_name(np.r_[1:10]), part_name(np.r_[10:15, 16:20]), part_name(np.r_[20:28])]
    after = ids_of(folder)
    # A removal that is killed leaves a piece beside the one that replaces it.
    for name, content in before.items():
        (folder / name).write_bytes(content)
    assert ids_of(folder) == after
    _, stale, _ = plan_removals(folder, np.array(after))
    assert [file.name for file in stale] == sorted(before)


def test_a_piece_of_an_earlier_version_keeps_its_name_and_is_compacted_all_the_same(folder: Location) -> None:
    (folder / "part-000000000000.parquet").write_table(table(range(10)))
    (folder / "part-000000000010.parquet").write_table(table(range(10, 20)))
    assert remove(folder, range(1, 20)) == 1
    assert names(folder) == ["part-000000000000.parquet", "part-000000000010.parquet"]
    assert ids_of(folder) == list(range(1, 20))
    first = part_files(folder)[0].read_bytes()
    ((work,), _) = plan_merges(folder, np.arange(1, 20))
    merge(work)
    # A merge that is killed leaves pieces behind. The row that one is named after is in no file any more.
    (folder / "part-000000000000.parquet").write_bytes(first)
    assert names(folder) == ["part-000000000000.parquet", "partition-00000000-0.parquet"]
    assert ids_of(folder) == list(range(1, 20))
    _, stale, _ = plan_removals(folder, np.arange(1, 20))
    assert [file.name for file in stale] == ["part-000000000000.parquet"]


def test_what_does_not_count_goes_first_and_never_comes_back(folder: Location) -> None:
    write_pieces(folder, table(range(10)))
    piece = folder / part_name(np.arange(10))
    left = piece.read_bytes()
    ((work,), _) = plan_merges(folder, np.arange(10))
    merge(work)
    piece.write_bytes(left)
    assert remove(folder, range(1, 10)) == 1
    assert names(folder) == ["partition-00000000-1.parquet"]
    assert ids_of(folder) == list(range(1, 10))


def test_a_file_of_an_earlier_version_gets_a_footer(folder: Location) -> None:
    (folder / "part-000000000000.parquet").write_table(table(range(6)))
    assert remove(folder, [0, 1, 5]) == 3
    footer = read_footer(part_files(folder)[0])
    assert footer is not None
    assert footer.ranges.tolist() == [[0, 2], [5, 6]]


def shards(ids: range) -> pa.Table:
    pictures = [np.random.default_rng(row).bytes(500) for row in ids]
    columns = {"row_id": list(ids), "image_id": [f"image-{row}" for row in ids], "status": ["ok"] * len(ids)}
    rest = {name: pa.nulls(len(ids), SHARDS.field(name).type) for name in ("error", "width", "height", "content")}
    return pa.table({**columns, **rest, "image": pictures}, SHARDS)


def test_a_shard_is_written_as_it_was(folder: Location) -> None:
    part, groups = folder / "part-000000000000.parquet", [shards(range(start, start + 64)) for start in (0, 64, 128)]
    assert write_groups(part, groups) == Counter(ok=192)
    before = pq.read_metadata(part.path, filesystem=part.filesystem)
    kept = [row for row in range(192) if row not in (0, 70, 71)]
    assert remove(folder, kept) == 3
    after = pq.read_metadata(part.path, filesystem=part.filesystem)
    assert [after.row_group(group).num_rows for group in range(3)] == [63, 62, 64]
    for column in range(after.num_columns):
        old, new = (each.row_group(0).column(column) for each in (before, after))
        for fact in ("path_in_schema", "compression", "has_dictionary_page", "is_stats_set", "physical_type"):
            assert getattr(old, fact) == getattr(new, fact), (old.path_in_schema, fact)
    found = read_table([part])
    assert found.schema.remove_metadata() == SHARDS
    assert found.column("row_id").to_pylist() == kept
    stays = np.isin(np.arange(192), kept)
    assert found.replace_schema_metadata().equals(pa.concat_tables(groups).filter(pa.array(stays)))
    assert np.random.default_rng(70).bytes(500) not in part.read_bytes()
    assert np.random.default_rng(72).bytes(500) in part.read_bytes()


def mixed(folder: Location) -> None:
    """A partition, pieces beside it, and pieces of a partition without a file."""
    write_pieces(folder, table(range(20)))
    ((work,), _) = plan_merges(folder, np.arange(20))
    merge(work)
    write_pieces(folder, table(range(20, 30)))
    write_pieces(folder, table(range(30, 40)))
    write_pieces(folder, table(range(PARTITION_ROWS, PARTITION_ROWS + 10)))
    write_pieces(folder, table(range(PARTITION_ROWS + 10, PARTITION_ROWS + 12)))


GONE = {0, 5, 20, 33, PARTITION_ROWS, PARTITION_ROWS + 10, PARTITION_ROWS + 11}
ALL = {*range(40), *range(PARTITION_ROWS, PARTITION_ROWS + 12)}


def test_a_kill_at_any_moment_loses_no_other_row_and_doubles_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, moments = sorted(ALL - GONE), 0
    for step in range(1, 100):
        folder = locate(str(tmp_path / str(step)))
        mixed(folder)
        try:
            with killed_at(step, monkeypatch):
                remove(folder, kept)
        except Killed:
            moments += 1
        else:
            break
        found = ids_of(folder)
        assert len(found) == len(set(found)), step
        assert set(kept) <= set(found) <= ALL, step
        # A run that comes next may compact the table first.
        if step % 2:
            merges, stale = plan_merges(folder, np.array(kept))
            for file in stale:
                file.delete()
            for work in merges:
                merge(work)
        remove(folder, kept)
        assert ids_of(folder) == kept, step
    assert moments >= 12


def test_a_task_that_is_called_again_after_a_kill_ends_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray calls a task again if its worker or node dies."""
    kept, moments = sorted(ALL - GONE), 0
    for step in range(1, 100):
        folder = locate(str(tmp_path / str(step)))
        mixed(folder)
        removals, _, _ = plan_removals(folder, np.array(kept))
        killed = False
        with killed_at(step, monkeypatch):
            for work in removals:
                try:
                    remove_rows(work)
                except Killed:
                    killed = True
                    remove_rows(work)
        assert ids_of(folder) == kept, step
        if not killed:
            break
        moments += 1
    assert moments >= 12
