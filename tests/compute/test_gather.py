"""Test that a sample of rows is gathered from the files of a table, here from few of them and by tasks from many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raycluster.compute import gather as room
from raycluster.compute.node_checks import ALONE
from raycluster.compute.tasks import FILES_A_TASK
from raycluster.storage.location import Location, locate
from raycluster.tables.files import part_files, write_pieces
from raycluster.tables.footers import with_footer
from raycluster.tables.names import PARTITION_ROWS, partition_name
from raycluster.tables.rows import vector_column

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

Make = Callable[[int, int], tuple[list[Location], np.ndarray]]


def table(ids: np.ndarray) -> pa.Table:
    embedding = vector_column(np.stack([ids, -ids], axis=1).astype(np.float32))
    return pa.table({"row_id": ids, "uri": [f"uri {i}" for i in ids], "embedding": embedding})


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A table with a partition of every third id, and then pieces of 7 rows, in no order, one of them of an earlier version."""

    def made(pieces: int, seed: int) -> tuple[list[Location], np.ndarray]:
        folder, rng = locate(str(tmp_path / f"{pieces}-{seed}")), np.random.default_rng(seed)
        first = np.arange(0, 600, 3)
        (folder / partition_name(0, 0)).write_table(with_footer(table(first)))
        later = PARTITION_ROWS + rng.permutation(7 * pieces)
        for part in np.split(later, pieces):
            write_pieces(folder, table(part))
        old = np.array([5 * PARTITION_ROWS + 2, 5 * PARTITION_ROWS])
        (folder / f"part-{old[1]:012d}.parquet").write_table(table(old))
        return part_files(folder), np.sort(np.concatenate([first, later, old]))

    return made


@pytest.mark.parametrize("pieces", [3, FILES_A_TASK + 5])
def test_a_sample_is_gathered_in_its_order(make: Make, pieces: int) -> None:
    for seed in range(3):
        files, ids = make(pieces, seed)
        wanted = np.sort(np.random.default_rng(seed).choice(ids, 60, replace=False))
        vectors = room.gather(files, wanted, common=ALONE)
        assert vectors.dtype == np.float32
        np.testing.assert_array_equal(vectors, np.stack([wanted, -wanted], axis=1))
        rows = room.gather_rows(files, wanted, ["uri"], common=ALONE)
        assert rows.column_names == ["row_id", "uri"]
        assert rows["row_id"].to_pylist() == wanted.tolist()
        assert rows["uri"].to_pylist() == [f"uri {i}" for i in wanted]
        np.testing.assert_array_equal(room.gather(files, ids[-1:], common=ALONE)[:, 0], ids[-1:])


def test_an_absent_row_is_an_error(make: Make) -> None:
    files, ids = make(2, 0)
    wanted = np.append(ids[:3], ids[-1] + 1)
    with pytest.raises(KeyError, match="1 of 4 rows have no embedding"):
        room.gather(files, wanted, common=ALONE)
    with pytest.raises(KeyError, match="1 of 4 rows are not in the table"):
        room.gather_rows(files, wanted, ["uri"], common=ALONE)
    with pytest.raises(KeyError):
        room.gather([], wanted, common=ALONE)
