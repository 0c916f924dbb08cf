"""Test that folders of an earlier version still work: its run is skipped or continued, and its model is served and assigns pictures."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import old_run
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from serving_kit import LocalEndpoint, post

import raycluster
from raycluster.config import StorageConfig
from raycluster.demo.drawing import draw_dataset
from raycluster.pipeline.prune import prune
from raycluster.pipeline.run import RunResult
from raycluster.pipeline.stages import RUN
from raycluster.pipeline.status import status
from raycluster.serving.live_model import LiveModel

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def old() -> Iterator[Path]:
    """The folder as the earlier version wrote it."""
    with FileLock(f"{old_run.PLACE}.lock"):
        shutil.rmtree(old_run.PLACE, ignore_errors=True)
        old_run.PLACE.mkdir()
        subprocess.run(["tar", "--extract", "--file", old_run.ARCHIVE, "--directory", old_run.PLACE], check=True)
        yield old_run.PLACE
        shutil.rmtree(old_run.PLACE)


def states(result: RunResult) -> dict[str, str]:
    return {stage: entry["state"] for stage, entry in result.stages.items()}


def assignments(table: str | Path) -> list[dict[str, Any]]:
    return sorted(pq.read_table(table).to_pylist(), key=lambda row: row["image_id"])


def test_prune_finds_nothing_to_delete(old: Path) -> None:
    # The plan of that version does not name its folders.
    assert '"paths"' not in (old / "out" / "_stages" / "plan.json").read_text()
    for output in (old / "out", old / "assigned"):
        result = prune(str(output), StorageConfig(), yes=True)
        assert (result["folders"], result["rows"], result["redo"]) == ({}, {}, [])


def test_every_stage_is_skipped(old: Path) -> None:
    assert states(raycluster.run(old_run.configuration())) == dict.fromkeys((stage.name for stage in RUN), "skipped")
    assert set(states(raycluster.assign(**old_run.new_pictures())).values()) == {"skipped"}
    found = status(str(old / "out"), StorageConfig())
    assert found["status"] == "ok"


def test_its_model_says_what_its_table_says(old: Path) -> None:
    rows = [row for row in assignments(next((old / "assigned" / "assignments").iterdir())) if row["status"] == "ok"]
    files = [Path(row["uri"]) for row in rows]
    predicted = raycluster.load_model(old / "out").predict(files)
    assert predicted.cluster.tolist() == [row["cluster"] for row in rows]
    with LocalEndpoint(LiveModel(str(old / "out"), StorageConfig(), "cpu", 32)) as endpoint:
        items = post(endpoint.url, files).json()["items"]
    assert [item["cluster"] for item in items] == [row["cluster"] for row in rows]


def test_it_goes_on_with_added_pictures(old: Path) -> None:
    before = assignments(next((old / "assigned" / "assignments").iterdir()))
    draw_dataset(old / "new" / "more", 4, old_run.KINDS, seed=13)
    added = raycluster.assign(**old_run.new_pictures())
    assert set(states(added).values()) == {"ran"}
    after = assignments(added.tables["assignments"])
    assert len(after) == len(before) + 4
    assert [row for row in after if not row["image_id"].startswith("more/")] == before

    draw_dataset(old / "photos" / "more", 4, old_run.KINDS, seed=14)
    grown = raycluster.run(old_run.configuration())
    assert {stage for stage, state in states(grown).items() if state == "skipped"} == {"train", "finetune"}
    assert len(assignments(grown.tables["assignments"])) == 29
    assert set(states(raycluster.run(old_run.configuration())).values()) == {"skipped"}


def test_removed_pictures_are_pruned(old: Path) -> None:
    config, gone = old_run.configuration(), next((old / "photos" / "fish").iterdir())
    gone.unlink()
    assert states(raycluster.run(config))["train"] == "skipped"
    result = prune(config["output"], StorageConfig(), yes=True)
    assert sorted(path.partition("/")[0] for path in result["rows"]) == [
        "embeddings",
        "embeddings",
        "semantics",
        "shards",
    ]
    assert len(result["warnings"]) == 2
    tables = [pq.read_table(file, partitioning=None) for file in (old / "out").rglob("*.parquet")]
    # A picture that was added has a longer path with the same end.
    name = gone.relative_to(old / "photos").as_posix()
    for trace in (f"photos/{name}", f"'image_id': '{name}'"):
        assert not any(trace in repr(table.to_pylist()) for table in tables)
    assert set(states(raycluster.run(config)).values()) == {"skipped"}
