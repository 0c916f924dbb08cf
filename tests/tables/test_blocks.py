"""Test that blocks of rows hold the wanted rows once, in the order of the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raycluster.errors import ArtifactError
from raycluster.storage.location import Location, locate
from raycluster.tables.blocks import find_blocks


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
