"""Run a million ready-made embeddings through all stages: the seconds of each stage, and the memory of the whole process tree.

    python tests/benchmarks/million.py --rows 1000000 --clusters 1000

The rows look like CLIP features (see clustering.py), and the nouns are rows of the same classes with more noise. DXMC is trained on
100,000 rows.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from clustering import features
from memory import run_measured

from raycluster.tables.rows import vector_column

PART = 100_000


def write_inputs(folder: Path, rows: int, dim: int, clusters: int, nouns: int) -> None:
    """Write `embeddings/` in parts, and `nouns.parquet`."""
    (folder / "embeddings").mkdir()
    every, _ = features(rows + nouns, dim, clusters)
    for start in range(0, rows, PART):
        part = every[start : min(start + PART, rows)].astype(np.float16)
        ids = pa.array([f"image {i:09d}" for i in range(start, start + len(part))])
        values = vector_column(part)
        table = pa.table({"image_id": ids, "embedding": values})
        pq.write_table(table, folder / "embeddings" / f"{start:09d}.parquet")
    draw = np.random.default_rng(1)
    words = every[rows:] + 0.5 * draw.standard_normal((nouns, dim)).astype(np.float32) / dim**0.5
    values = vector_column(words.astype(np.float32))
    pq.write_table(
        pa.table({"noun": [f"noun {i}" for i in range(nouns)], "embedding": values}), folder / "nouns.parquet"
    )


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--nouns", type=int, default=20_000)
    parser.add_argument("--train-sample", type=int, default=100_000)
    parser.add_argument("--method", default="dxmc")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_inputs(folder, options.rows, options.dim, options.clusters, options.nouns)
        command = [sys.executable, "-m", "raycluster.cli", "run", "--embeddings", str(folder / "embeddings")]
        command += ["--vocabulary.embeddings", str(folder / "nouns.parquet"), "--output", str(folder / "run")]
        command += ["--clusters", str(options.clusters), "--method.name", options.method]
        command += ["--method.train_sample", str(options.train_sample)]
        started = time.perf_counter()
        result, peak = run_measured(command)
        print(f"{options.rows} x {options.dim}, {options.clusters} clusters, {os.cpu_count()} cores, {options.method}")
        for stage, entry in result["stages"].items():
            print(f"  {stage:10} {entry['rows']:9d} rows {entry['seconds']:9.1f} s")
        print(f"  whole run {(time.perf_counter() - started) / 60:.1f} min, peak memory {peak / 1024:.2f} GiB")
        print(f"  {result['metrics']}")


if __name__ == "__main__":
    main()
