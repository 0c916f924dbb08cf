"""Test that blocks of rows hold the wanted rows once, in the order of the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycluster.errors import ArtifactError
from raycluster.storage.location import Location, locate
from raycluster.tables.blocks import find_blocks
from raycluster.tables.names import part_name


@pytest.fixture
def files(tmp_path: Path) -> list[Location]:
    """Rows 0 to 299 in three files of 100, in row groups of 30. In the second file the ids fall."""
    ids = np.arange(300)
    ids[100:200] = ids[100:200][::-1]
    made = []
    for start in range(0, 300, 100):
        file = locate(str(tmp_path / f"part-{start}.parquet"))
        own = ids[start : start + 100]
        file.write_table(pa.table({"row_id": own, "uri": [f"u{i}" for i in own], "other": own}), row_group_size=30)
        made.append(file)
    return made


def test_blocks_hold_the_wanted_rows_once_in_the_order_of_the_files(files: list[Location]) -> None:
    wanted = np.arange(0, 300, 7)
    blocks = find_blocks(files, wanted, largest=10, fair=1)
    assert [len(block) for block in blocks] == [10, 10, 10, 10, 3]
    tables = [block.read(("row_id", "uri", "size")) for block in blocks]
    assert tables[0].column_names == ["row_id", "uri"]
    found = np.concatenate([table["row_id"].to_numpy() for table in tables])
    assert found.tolist() == [i for i in range(100) if i % 7 == 0] + [i for i in range(199, 99, -1) if i % 7 == 0] + [
        i for i in range(200, 300) if i % 7 == 0
    ]
    assert [f"u{i}" for i in found] == [uri for table in tables for uri in table["uri"].to_pylist()]


@pytest.mark.parametrize(
    ("largest", "fair", "multiple", "sizes"),
    [(1000, 1, 1, [300]), (128, 1, 64, [128, 128, 44]), (128, 8, 16, [48] * 6 + [12]), (128, 100, 64, [64] * 4 + [44])],
)
def test_few_rows_still_make_enough_blocks(
    files: list[Location], largest: int, fair: int, multiple: int, sizes: list[int]
) -> None:
    blocks = find_blocks(files, np.arange(300), largest, fair, multiple)
    assert [len(block) for block in blocks] == sizes


def test_nothing_wanted_is_no_block(files: list[Location]) -> None:
    assert find_blocks(files, np.empty(0, np.int64), 10, 1) == []


def test_rows_that_are_gone_are_named(files: list[Location]) -> None:
    with pytest.raises(ArtifactError, match="100 of 300 rows are no longer there; restore the files"):
        find_blocks(files[:2], np.arange(300), 10, 1)


def test_a_file_that_is_written_again_under_its_name_is_read_again(tmp_path: Path) -> None:
    """A removal of rows does that to pieces whose names do not tell their rows; a process must not answer from its memory then."""
    file = locate(str(tmp_path / "part-000000000000.parquet"))
    for ids in ([0, 4, 9], [4, 9]):
        file.write_table(pa.table({"row_id": ids, "uri": [f"u{i}" for i in ids]}))
        (block,) = find_blocks([file], np.array(ids), 10, fair=1)
        assert block.read(["row_id", "uri"]).to_pylist() == [{"row_id": i, "uri": f"u{i}"} for i in ids]


def test_a_row_group_of_a_file_that_never_changes_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = locate(str(tmp_path / part_name(np.arange(100))))
    file.write_table(pa.table({"row_id": range(100), "uri": [f"u{i}" for i in range(100)]}), row_group_size=50)
    opened: list[str] = []

    class Counting(pq.ParquetFile):
        def __init__(self, *given: Any, **more: Any) -> None:
            opened.append(given[0])
            super().__init__(*given, **more)

    monkeypatch.setattr(pq, "ParquetFile", Counting)
    blocks = find_blocks([file], np.arange(100), 10, fair=1)
    read = [row for block in blocks for row in block.read(["row_id"]).column("row_id").to_pylist()]
    assert read == list(range(100))
    assert len(blocks) == 10
    assert len(opened) == 2
