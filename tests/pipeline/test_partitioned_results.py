"""Test that the stages after the assignment get from partitions and pieces what a look at all rows gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from raycluster.clustering.contingency import supervised_scores
from raycluster.compute.node_checks import ALONE
from raycluster.compute.tasks import FILES_A_TASK
from raycluster.config import ReportConfig
from raycluster.model.drift import drift as compare
from raycluster.model.drift import snapshot
from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stages import describe, drift, evaluate
from raycluster.storage.location import Location, locate
from raycluster.tables.files import part_files, write_pieces
from raycluster.tables.footers import with_footer
from raycluster.tables.names import PARTITION_ROWS, partition_name

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

CLUSTERS = 5
NAMES = [{"name": f"name {c}", "nouns": []} for c in range(CLUSTERS)]
MANY = FILES_A_TASK + 4
"""Pieces that several tasks read."""


def write(folder: Location, rows: pa.Table, cuts: list[int]) -> None:
    """Write the rows of the first partition in one file, and the others in pieces."""
    in_first = rows["row_id"].to_numpy() < PARTITION_ROWS
    (folder / partition_name(0, 1)).write_table(with_footer(rows.filter(pa.array(in_first)).sort_by("row_id")))
    rest = rows.filter(pa.array(~in_first))
    for start, end in zip([0, *cuts], [*cuts, len(rest)], strict=True):
        write_pieces(folder, rest.slice(start, end - start))


class Run:
    """A context of tables that are cut differently, and the same tables in one piece."""

    def __init__(self, folder: Path, seed: int, pieces: int, labels: list[str | None], failing: float) -> None:
        rng = np.random.default_rng(seed)
        n = 40 + 6 * pieces
        ids = np.concatenate([rng.choice(200, 40, replace=False), PARTITION_ROWS + rng.permutation(6 * pieces)])
        self.before, self.after = self.assignments(rng, ids, 0.15), self.assignments(rng, ids, failing)
        label = pa.array([labels[i] for i in rng.integers(0, len(labels), n)], pa.string())
        self.manifest = pa.table({"row_id": ids, "label": label})
        self.root = locate(str(folder))
        tables = {"manifest": self.manifest, "baseline": self.before, "assign": self.after}
        for number, (stage, table) in enumerate(tables.items()):
            # Each table is cut at other places. Only the manifest has few pieces.
            count = 2 if stage == "manifest" else pieces
            cuts = [(6 * pieces * i + number) // count for i in range(1, count)]
            order = rng.permutation(n) if stage == "manifest" else np.arange(n)
            write(self.root / stage, table.take(order), cuts)
        model = SimpleNamespace(
            clusters=NAMES,
            names=[each["name"] for each in NAMES],
            method=SimpleNamespace(n_clusters=CLUSTERS),
            novelty=SimpleNamespace(expected=0.01),
            snapshot=snapshot(np.full(CLUSTERS, 9), rng.random(45)),
            record={"dim": 4},
        )
        self.context: Any = SimpleNamespace(
            part_files=lambda stage: part_files(self.root / stage),
            place=lambda step: self.root / step,
            resources=SimpleNamespace(common=ALONE),
            config=SimpleNamespace(clusters=CLUSTERS, report=ReportConfig(most_typical=4, least_typical=3)),
            model=model,
            row_ids=np.sort(ids),
        )
        self.context.gather_rows = lambda *asked: RunContext.gather_rows(self.context, *asked)

    @staticmethod
    def assignments(rng: np.random.Generator, ids: np.ndarray, failing: float) -> pa.Table:
        n = len(ids)
        failed = rng.random(n) < failing
        # Cluster 3 is empty, and cluster 4 has rows in the first partition only.
        cluster = np.where(ids < PARTITION_ROWS, rng.choice([0, 1, 4], n), rng.choice([0, 1, 2], n)).astype(np.int32)
        columns = {
            "row_id": ids,
            "image_id": [f"image {i}" for i in ids],
            "uri": [f"/photos/{i}.jpg" for i in ids],
            "status": np.where(failed, "missing", "ok"),
            "cluster": pa.array(cluster, mask=failed),
            "confidence": pa.array((rng.integers(1, 9, n) / 8).astype(np.float32), mask=failed),
            "outlier": pa.array(rng.random(n) < 0.3, mask=failed),
        }
        return pa.table(columns)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Run]:
    def made(pieces: int, seed: int, labels: list[str | None], failing: float = 0.15) -> Run:
        return Run(tmp_path / f"{pieces}-{seed}", seed, pieces, labels, failing)

    return made


@pytest.mark.parametrize("pieces", [3, MANY])
@pytest.mark.parametrize("labels", [["cat", "dog", None, "owl"], ["cat"], [None]])
def test_labels_are_counted_in_parts(make: Callable[..., Run], pieces: int, labels: list[str | None]) -> None:
    run = make(pieces, 1, labels)
    found = supervised_scores(evaluate._count_labels(run.context, "assign").table)
    known = dict(zip(run.manifest["row_id"].to_pylist(), run.manifest["label"].to_pylist(), strict=True))
    rows = [
        (known[row["row_id"]], row["cluster"])
        for row in run.after.to_pylist()
        if row["cluster"] is not None and known[row["row_id"]] is not None
    ]
    assert found["n_labelled"] == len(rows)
    if not rows:
        assert found["acc"] is None
        return
    truth, clusters = zip(*rows, strict=True)
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(truth, clusters), abs=1e-12)
    assert found["ari"] == pytest.approx(adjusted_rand_score(truth, clusters), abs=1e-12)


@pytest.mark.parametrize("pieces", [3, MANY])
def test_agreement_is_counted_in_parts(make: Callable[..., Run], pieces: int) -> None:
    run = make(pieces, 2, [None])
    pairs = zip(run.before["cluster"].to_pylist(), run.after["cluster"].to_pylist(), strict=True)
    both = [one == other for one, other in pairs if one is not None and other is not None]
    assert evaluate._share_kept(run.context) == sum(both) / len(both)


@pytest.mark.parametrize("pieces", [3, MANY])
def test_clusters_are_described_in_parts(make: Callable[..., Run], pieces: int) -> None:
    run = make(pieces, 3, [None])
    assert describe.run(run.context, "clusters").rows == CLUSTERS  # type: ignore[arg-type]
    for row in pq.read_table(f"{run.root.path}/clusters").to_pylist():
        own = [each for each in run.after.to_pylist() if each["cluster"] == row["cluster"]]
        own.sort(key=lambda each: (-each["confidence"], each["row_id"]))
        images = [{name: each[name] for name in ("row_id", "image_id", "uri", "confidence")} for each in own]
        assert row["size"] == len(own)
        assert row["exemplars"] == images[:4]
        assert row["least_typical"] == images[4:][::-1][:3]


@pytest.mark.parametrize("pieces", [3, MANY])
def test_drift_is_measured_in_parts(make: Callable[..., Run], pieces: int) -> None:
    run = make(pieces, 4, [None])
    drift.run(run.context, "drift")  # type: ignore[arg-type]
    good = [row for row in run.after.to_pylist() if row["cluster"] is not None]
    sizes = np.bincount([row["cluster"] for row in good], minlength=CLUSTERS)
    now = snapshot(sizes, np.array([row["confidence"] for row in good]))
    model, flagged = run.context.model, sum(row["outlier"] for row in good)
    expected = compare(model.snapshot, now, flagged, 0.01, model.names, 4)
    found = json.loads((run.root / "drift" / "drift.json").read_bytes())
    assert found == {"n_failed": len(run.after) - len(good), **expected}


def test_images_that_all_failed_are_in_no_cluster(make: Callable[..., Run]) -> None:
    run = make(FILES_A_TASK + 4, 5, ["cat"], failing=1.0)
    assert supervised_scores(evaluate._count_labels(run.context, "assign").table)["n_labelled"] == 0
    assert evaluate._share_kept(run.context) is None
    describe.run(run.context, "clusters")  # type: ignore[arg-type]
    rows = pq.read_table(f"{run.root.path}/clusters").to_pylist()
    assert [(row["size"], row["mean_confidence"], row["exemplars"]) for row in rows] == [(0, None, [])] * CLUSTERS
    assert drift.run(run.context, "drift").rows == 0  # type: ignore[arg-type]
