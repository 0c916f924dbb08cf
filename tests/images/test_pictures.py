"""Test that the pictures of rows are fetched in slices of limited size, and one slice ahead."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raycluster.config import StorageConfig
from raycluster.images import pictures as module
from raycluster.images.fetch import Fetched
from raycluster.images.pictures import SLICE_BYTES, SLICE_ROWS, fetched_slices

MB = 2**20


def rows(*sizes: int | None) -> pa.Table:
    return pa.table(
        {"row_id": np.arange(len(sizes)), "uri": ["/nowhere"] * len(sizes), "size": pa.array(sizes, pa.int64())}
    )


def lengths(table: pa.Table, **limits: int) -> list[int]:
    return [len(part) for part, _ in fetched_slices(table, StorageConfig(), **{"max_bytes": 64 * MB, **limits})]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([14_000] * 300, [128, 128, 44]),
        ([5 * MB] * 512, [12] * 42 + [8]),
        ([MB, 63 * MB, MB, 64 * MB, MB], [2, 1, 1, 1]),
        # Nothing is read of a picture that is too large.
        ([65 * MB] * 130, [128, 2]),
        # The size of a row of a table is not known.
        ([None] * 130, [128, 2]),
        ([], []),
    ],
)
def test_slices_hold_so_many_rows_and_bytes(sizes: list[int | None], expected: list[int]) -> None:
    assert lengths(rows(*sizes)) == expected


def test_one_slice_is_fetched_ahead_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "a.bin"
    picture.write_bytes(b"x" * (SLICE_BYTES // 4))
    table = pa.table({"row_id": range(24), "uri": [str(picture)] * 24, "size": [SLICE_BYTES // 4] * 24})
    fetched, used, most = 0, 0, 0
    changed = threading.Condition()
    read = module.fetch_batch

    def counted(uris: list[str], *more: object) -> list[Fetched]:
        nonlocal fetched, most
        with changed:
            fetched += len(uris)
            most = max(most, fetched - used)
            changed.notify_all()
        return read(uris, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "fetch_batch", counted)
    seen: list[int] = []
    for part, found in fetched_slices(table, StorageConfig(), max_bytes=SLICE_BYTES):
        assert [len(item.data or b"") for item in found] == [SLICE_BYTES // 4] * 4
        seen += part.column("row_id").to_pylist()
        with changed:
            # The next slice is being fetched while this one is in use.
            expected = min(24, len(seen) + 4)
            assert changed.wait_for(lambda expected=expected: fetched == expected, 60)
            used += len(found)
    assert seen == list(range(24))
    assert most == 8


def test_rows_of_a_shard_come_in_slices_of_rows() -> None:
    count = SLICE_ROWS + 1
    table = pa.table(
        {"row_id": range(count), "image": [b"x"] * count, "status": ["ok"] * count, "error": [None] * count}
    )
    assert lengths(table) == [SLICE_ROWS, 1]
    assert lengths(table, most_rows=100) == [100, 29]
