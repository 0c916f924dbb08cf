"""Run `raycluster run` as its users do, in a process of its own with a Ray of its own, and compare what two runs wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycluster.config import StorageConfig
from raycluster.storage.location import locate, read_table

TABLES = ("manifest", "embeddings", "assignments")


def start(file: Path, log: Path, program: str | None = None, **environment: str) -> subprocess.Popen[bytes]:
    """Start a run with the configuration in `file`; standard error is appended to `log`.

    `program`: Python code that takes the arguments of the command and is run in its place.
    """
    return start_command(["run", "--config", str(file)], log, program, **environment)


def start_command(
    words: list[str], log: Path, program: str | None = None, **environment: str
) -> subprocess.Popen[bytes]:
    """Start any command; standard error is appended to `log`. `program`: as in :func:`start`."""
    own = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    begin = [sys.executable, "-c", program] if program else [str(Path(sys.executable).parent / "raycluster")]
    command = [*begin, *words]
    with log.open("ab") as stderr:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env={**own, **environment})


def finish(run: subprocess.Popen[bytes], timeout: float = 400) -> dict[str, Any] | None:
    """Wait for the run; return its result if it ended well, and None otherwise."""
    printed, _ = run.communicate(timeout=timeout)
    return json.loads(printed) if run.returncode == 0 else None


def tables(result: Mapping[str, Any], storage: StorageConfig | None = None) -> dict[str, pa.Table]:
    """The tables that a result names, sorted by row id."""
    named = {
        name: locate(result["tables"][name], storage) for name in (*TABLES, "baseline") if name in result["tables"]
    }
    return {name: read_table(place.list(".parquet")).sort_by("row_id") for name, place in named.items()}


def compare(found: Mapping[str, pa.Table], expected: Mapping[str, pa.Table], but: tuple[str, ...] = ()) -> None:
    """Check that no image is lost or there twice, and that every value is as expected, except in the columns `but`."""
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        assert found[name]["row_id"].equals(table["row_id"]), name
        for column in set(table.column_names) - set(but):
            _compare(found[name][column].combine_chunks(), table[column].combine_chunks(), f"{name} {column}")


def stamp(parts: Iterable[Path]) -> list[int]:
    """Replace the embeddings in these files by vectors of ones, and return the ids of their rows.

    :func:`check_stamped` finds out whether a later run has kept the rows, wherever they lie by then.
    """
    ids: list[int] = []
    for part in parts:
        table = pq.read_table(part)
        column = table.column("embedding").combine_chunks()
        ones = np.ones((len(table), column.type.list_size), np.float16)
        stamped = pa.array(
            [row if ok else None for row, ok in zip(ones, column.is_valid().to_pylist(), strict=True)], column.type
        )
        pq.write_table(table.set_column(table.column_names.index("embedding"), "embedding", stamped), part)
        ids += table.filter(column.is_valid()).column("row_id").to_pylist()
    return ids


def check_stamped(embeddings: str, ids: list[int]) -> None:
    """Check that exactly these rows have the embeddings of :func:`stamp`."""
    table = pq.read_table(embeddings, columns=["row_id", "embedding"])
    found = [row["row_id"] for row in table.to_pylist() if row["embedding"] and set(row["embedding"]) == {1.0}]
    assert sorted(found) == sorted(ids)


def _compare(left: pa.Array, right: pa.Array, what: str) -> None:
    if what.endswith(("cluster", "runner_up")):
        # Sums in another order differ in their last bit, which may decide between two clusters that are equally near.
        same = [a == b for a, b in zip(left.to_pylist(), right.to_pylist(), strict=True)]
        assert np.mean(same) >= 0.99, what
    elif pa.types.is_floating(left.type) or what.endswith("embedding"):
        assert left.is_null().equals(right.is_null()), what
        values = [side.drop_null() for side in (left, right)]
        if what.endswith("embedding"):
            values = [side.flatten().cast(pa.float32()) for side in values]
        np.testing.assert_allclose(*(side.to_numpy() for side in values), atol=5e-3, err_msg=what)
    else:
        assert left.equals(right), what
