"""Measure what comes after the assignment with very many clusters: the seconds of each part, and the peak memory of its own process.

    python tests/benchmarks/many_clusters.py --rows 1000000 --clusters 10000 [describe] [labels] [labels-at-random] [naming] [pages]

Rows are drawn at random. `describe` sums up the clusters, `labels` counts and scores as many labels as clusters (nine of ten rows of a label
are in few clusters; `labels-at-random`: none are), `naming` finds and matches nouns for a training sample, and `pages` renders the report.
Each part is a process of its own; Ray's processes are not counted.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from torch.nn.functional import normalize

from raycluster.clustering.contingency import supervised_scores
from raycluster.compute.node_checks import ALONE
from raycluster.config import ReportConfig
from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stages import describe, evaluate
from raycluster.results.naming import best_nouns, name_clusters, unnamed
from raycluster.results.report.data import ClusterCard, ReportData, Thumb
from raycluster.results.report.pages import picture_path, render_pages, write_files
from raycluster.storage.location import Location, locate
from raycluster.tables.files import part_files, write_partitions

BLOCK = 2**20


def write_tables(folder: Location, rows: int, clusters: int, at_random: bool) -> None:
    """Write a manifest and assignments in partitions."""
    rng = np.random.default_rng(0)
    for start in range(0, rows, BLOCK):
        ids = np.arange(start, min(start + BLOCK, rows))
        cluster = rng.integers(0, clusters, len(ids)).astype(np.int32)
        moved = (
            rng.integers(0, clusters, len(ids)) if at_random else (cluster + rng.integers(0, 5, len(ids))) % clusters
        )
        known = (
            pa.array([f"image-{i:09d}.jpg" for i in ids]),
            pa.array([f"s3://bucket/photos/image-{i:09d}.jpg" for i in ids]),
        )
        labels = pa.array([f"label {i}" for i in moved])
        manifest = {"row_id": ids, "image_id": known[0], "uri": known[1], "label": labels}
        assigned = {"row_id": ids, "image_id": known[0], "uri": known[1], "status": pa.array(["ok"] * len(ids)),
                    "cluster": cluster, "confidence": rng.random(len(ids)).astype(np.float32)}  # fmt: skip
        write_partitions(folder / "manifest", pa.table(manifest))
        write_partitions(folder / "assign", pa.table(assigned))


def context(folder: Location, clusters: int) -> Any:
    """What these stages use of the context of a run."""
    made: Any = SimpleNamespace(
        part_files=lambda stage: part_files(folder / stage),
        place=lambda step: folder / step,
        resources=SimpleNamespace(common=ALONE),
        config=SimpleNamespace(clusters=clusters, report=ReportConfig()),
        model=SimpleNamespace(clusters=unnamed(clusters)),
    )
    made.gather_rows = lambda *asked: RunContext.gather_rows(made, *asked)
    return made


def measured(name: str, work: Callable[[], Any]) -> Any:
    """The result of `work()`; its seconds and the memory that the process had at most and before are printed."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    result = work()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"  {name:34} {time.perf_counter() - started:7.1f} s, peak {after / 1024:6.0f} MiB, before {before / 1024:.0f}",
        flush=True,
    )
    return result


def of_tables(part: str, options: argparse.Namespace) -> None:
    """Measure the stages that read tables."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = locate(scratch)
        write_tables(folder, options.rows, options.clusters, part == "labels-at-random")
        ray.init(address="local", include_dashboard=False, log_to_driver=False)
        ctx = context(folder, options.clusters)
        if part == "describe":
            measured("describe", lambda: describe.run(ctx, "clusters"))  # type: ignore[arg-type]
            return
        counts = measured("labels counted", lambda: evaluate._count_labels(ctx, "assign"))
        scores = measured(f"scores of {counts.table.nnz} pairs", lambda: supervised_scores(counts.table))
        print(f"  {scores}")


def naming(options: argparse.Namespace) -> None:
    """Measure the names of clusters."""
    draw = torch.Generator().manual_seed(0)
    nouns = normalize(torch.randn(options.nouns, options.dim, generator=draw), dim=1)
    own = torch.randint(options.clusters, (options.sample,), generator=draw)
    images = (nouns[own] + 0.1 * torch.randn(options.sample, options.dim, generator=draw)).half()
    what = f"{options.sample} images, {options.nouns} nouns"
    found = measured(what, lambda: best_nouns(images, own, nouns, options.clusters))
    names = measured("names", lambda: name_clusters(found, [f"noun {i}" for i in range(options.nouns)]))
    print(f"  {sum(bool(each['nouns']) for each in names)} clusters have a noun")


def pages(options: argparse.Namespace) -> None:
    """Measure the rendering of the report."""

    def card(cluster: int) -> ClusterCard:
        thumbs = tuple(Thumb(f"image {i}", 0.5, f"../{picture_path(9 * cluster + i)}") for i in range(9))
        name = f"noun {cluster}"
        return ClusterCard(cluster, name, (name, "other", "third"), cluster % 997, 0.5, thumbs[:6], thumbs[6:])

    cards = tuple(map(card, range(options.clusters)))
    data = ReportData("t", "2026-01-01", {}, {}, {}, 10**6, cards, {}, "", "", [], None, {}, None, None, [])

    def render(folder: Path) -> int:
        written = [(path, text.encode()) for path, text in render_pages(data)]
        write_files(locate(str(folder)), written)
        return sum(len(page) for _, page in written)

    with tempfile.TemporaryDirectory() as scratch:
        print(f"  {measured('pages', lambda: render(Path(scratch))) / 2**20:.1f} MiB")


def main() -> None:
    """Print what was measured."""
    parts = ("describe", "labels", "labels-at-random", "naming", "pages")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, []])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--clusters", type=int, default=10_000)
    parser.add_argument("--sample", type=int, default=100_000)
    parser.add_argument("--nouns", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=512)
    options = parser.parse_args()
    if len(options.parts) != 1:
        given = [f"--{name}={value}" for name, value in vars(options).items() if name != "parts"]
        for part in options.parts or parts:
            subprocess.run([sys.executable, __file__, part, *given], check=True)
        return
    (part,) = options.parts
    print(f"{part}: {options.clusters} clusters", flush=True)
    {"naming": naming, "pages": pages}.get(part, lambda given: of_tables(part, given))(options)


if __name__ == "__main__":
    main()
