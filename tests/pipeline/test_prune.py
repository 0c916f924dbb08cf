"""Test `raycluster prune` from end to end: what it deletes, what it leaves alone, and that a kill at any moment does no harm."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import drawn_run
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn_run import KINDS, configuration
from kill_points import Killed, killed_at

import raycluster
from raycluster.cli import main
from raycluster.config import StorageConfig
from raycluster.demo.drawing import draw_dataset
from raycluster.pipeline.prune import prune
from raycluster.pipeline.run import RunResult
from raycluster.storage.location import Location, locate
from raycluster.storage.lock import held

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

LOCAL = StorageConfig()


def states(result: RunResult) -> dict[str, str]:
    return {stage: entry["state"] for stage, entry in result.stages.items()}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def traces(output: Location, names: list[str]) -> list[str]:
    """The files that hold one of the names, in their bytes or in the rows of a table."""
    found = []
    for file in output.list(recursive=True):
        content = file.read_bytes()
        text = repr(pq.read_table(pa.BufferReader(content)).to_pylist()) if file.name.endswith(".parquet") else ""
        found += [f"{file.path}: {name}" for name in names if name.encode() in content or name in text]
    return found


def of_embeddings(folder: Location, count: int = 60) -> dict[str, Any]:
    """The configuration of a run on ready-made embeddings, which has all stages but those of text and pictures."""
    write_embeddings(folder, [f"picture-{number:03d}" for number in range(count)])
    return {
        "embeddings": f"{folder.uri}/given.parquet",
        "output": f"{folder.uri}/out",
        "clusters": 3,
        "method": {"name": "kmeans"},
        "storage": folder.options.model_dump(exclude_none=True),
    }


def write_embeddings(folder: Location, names: list[str]) -> None:
    draws = [np.random.default_rng(int(name[-3:])).normal(size=8).astype(np.float32) for name in names]
    (folder / "given.parquet").write_table(pa.table({"image_id": names, "embedding": [list(draw) for draw in draws]}))


REMOVED = ["picture-000", "picture-017"]


def remaining(count: int = 60) -> list[str]:
    return [name for name in (f"picture-{number:03d}" for number in range(count)) if name not in REMOVED]


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of which two embeddings were taken away, before the run is repeated. It has results of another configuration too."""
    folder = locate(str(tmp_path_factory.mktemp("shrunk")))
    config = of_embeddings(folder)
    raycluster.run({**config, "clusters": 4})
    raycluster.run(config)
    write_embeddings(folder, remaining())
    return config


def copied(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A copy of a run. Its sources stay where they are."""
    shutil.copytree(config["output"], folder)
    return {**config, "output": str(folder)}


def test_removed_pictures_leave_no_trace(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    photos, output = tmp_path / "photos", tmp_path / "out"
    draw_dataset(photos, 40, KINDS, seed=11)
    config = configuration(photos, output, shards={"enabled": True})
    first = raycluster.run(config)
    listed = pq.read_table(first.tables["manifest"]).sort_by("row_id")["image_id"].to_pylist()
    gone = [listed[0], listed[17]]
    for name in gone:
        (photos / name).unlink()
    assert len(traces(locate(str(output)), gone)) > 10
    second = raycluster.run(config)
    assert states(second)["train"] == "skipped"
    before = tree(output)
    assert traces(locate(str(output)), gone)

    assert main(["prune", "--output", str(output)]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["command"] == "prune"
    assert (result["status"], result["deleted"], result["redo"]) == ("ok", False, [])
    by_kind = {path.partition("/")[0]: count for path, count in result["rows"].items()}
    assert by_kind == {"embeddings": 2, "shards": 2, "semantics": 2}
    kinds = [path.partition("/")[0] for path in result["folders"]]
    assert sorted(kinds) == ["assignments", "clusters", "evaluation", "manifest", "report"]
    assert all(entry["files"] >= 1 and entry["bytes"] > 100 for entry in result["folders"].values())
    assert any("--retrain" in warning for warning in result["warnings"])
    assert "nothing was deleted; give --yes" in result["warnings"][-1]
    assert tree(output) == before

    assert main(["prune", "--output", str(output), "--yes"]) == 0
    deleted = json.loads(capfd.readouterr().out)
    assert deleted["deleted"]
    assert (deleted["folders"], deleted["rows"]) == (result["folders"], result["rows"])
    assert traces(locate(str(output)), gone) == []
    assert not any((output / path).exists() for path in result["folders"])
    assert states(raycluster.run(config)) == dict.fromkeys(first.stages, "skipped")
    for name in ("manifest", "shards", "embeddings", "assignments"):
        assert len(pq.read_table(second.tables[name])) == 38, name
    again = prune(str(output), LOCAL, yes=True)
    assert (again["folders"], again["rows"]) == ({}, {})

    retrained = raycluster.run(config, retrain=True)
    assert states(retrained)["train"] == "ran"
    last = prune(str(output), LOCAL, yes=True)
    assert Path(str(first.model)).relative_to(output).as_posix() in last["folders"]
    assert last["warnings"] == []
    assert states(raycluster.run(config)) == dict.fromkeys(first.stages, "skipped")


def test_with_a_new_manifest_alone_what_shows_the_pictures_goes_and_is_made_again(
    shrunk: dict[str, Any], tmp_path: Path
) -> None:
    config = copied(shrunk, tmp_path / "out")
    raycluster.run(config, until="manifest", command="manifest")
    result = prune(config["output"], LOCAL, yes=True)
    assert set(result["redo"]) == {"describe", "evaluate", "report"}
    assert traces(locate(config["output"]), REMOVED) == []
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["result"]["report"] is None
    assert "describe" not in record["stages"]
    assert "clusters" not in record["result"]["tables"]
    assert main(["status", config["output"]]) == 0
    # An image that comes back is a new one.
    after = raycluster.run(config)
    assert {stage for stage, state in states(after).items() if state == "skipped"} == {"manifest", "train"}
    assert sorted(pq.read_table(after.tables["assignments"])["image_id"].to_pylist()) == remaining()


def test_a_kill_at_any_moment_leaves_a_folder_that_a_run_and_another_prune_bring_to_the_same_end(
    shrunk: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = copied(shrunk, tmp_path / "expected")
    raycluster.run(expected)
    prune(expected["output"], LOCAL, yes=True)
    wanted = list(tree(tmp_path / "expected"))
    moments = 0
    for step in range(1, 400, 3):
        config = copied(shrunk, tmp_path / str(step))
        listed_only = step % 2 == 0
        raycluster.run(config, **({"until": "manifest", "command": "manifest"} if listed_only else {}))
        try:
            with killed_at(step, monkeypatch):
                prune(config["output"], LOCAL, yes=True)
        except Killed:
            moments += 1
            (tmp_path / str(step) / "_lock.json").unlink(missing_ok=True)
        else:
            break
        ran = states(raycluster.run(config))
        assert ran["train"] == "skipped", step
        if not listed_only:
            assert set(ran.values()) == {"skipped"}, step
        prune(config["output"], LOCAL, yes=True)
        assert traces(locate(config["output"]), REMOVED) == [], step
        assert list(tree(tmp_path / str(step))) == wanted, step
        shutil.rmtree(tmp_path / str(step))
    assert moments >= 10


WITHOUT_RAY = """
import sys
from raycluster.cli import main
code = main(["prune", "--output", sys.argv[1], "--yes"])
import ray
sys.exit(code or ray.is_initialized())
"""


def test_without_rows_to_remove_ray_is_not_started(shrunk: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "out"
    copied(shrunk, output)
    command = [sys.executable, "-c", WITHOUT_RAY, str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["folders"]) == 5


@pytest.fixture
def new_pictures(shrunk: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    folder = locate(str(tmp_path))
    write_embeddings(folder, [f"picture-{number:03d}" for number in range(30)])
    given = {"model": shrunk["output"], "embeddings": f"{folder.path}/given.parquet", "output": f"{folder.path}/new"}
    raycluster.assign(**given)
    write_embeddings(folder, remaining(30))
    return given


def test_the_output_of_new_pictures_is_pruned_too(new_pictures: dict[str, Any]) -> None:
    raycluster.assign(**new_pictures)
    result = prune(new_pictures["output"], LOCAL, yes=True)
    assert {path.partition("/")[0] for path in result["folders"]} == {"manifest", "assignments", "drift"}
    assert list(result["rows"].values()) == [2]
    assert traces(locate(new_pictures["output"]), REMOVED) == []
    assert set(states(raycluster.assign(**new_pictures)).values()) == {"skipped"}


def test_a_table_that_loses_all_rows_goes_as_a_whole(tmp_path: Path) -> None:
    folder = locate(str(tmp_path))
    config = of_embeddings(folder)
    raycluster.run(config, until="assign")
    write_embeddings(folder, [f"other-{number:03d}" for number in range(100, 120)])
    raycluster.run(config, until="manifest", command="manifest")
    result = prune(config["output"], LOCAL, yes=True)
    assert [path.partition("/")[0] for path in result["folders"]] == ["manifest", "assignments", "embeddings"]
    assert traces(locate(config["output"]), ["picture-"]) == []
    after = raycluster.run(config, until="assign", retry_failed=True)
    assert states(after) == {"manifest": "skipped", "embed": "ran", "train": "skipped", "assign": "ran"}


def test_in_a_bucket_it_is_the_same(s3: StorageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = locate(f"s3://raycluster-test/prune-{time.time_ns()}", s3)
    config = of_embeddings(folder)
    raycluster.run({**config, "clusters": 4})
    raycluster.run(config)
    write_embeddings(folder, remaining())
    raycluster.run(config)
    options = [
        "--output",
        config["output"],
        "--storage.endpoint_url",
        str(s3.endpoint_url),
        "--storage.region",
        "us-east-1",
    ]
    output = folder / "out"
    before = {file.path: file.read_bytes() for file in output.list(recursive=True)}
    assert main(["prune", *options]) == 0
    assert {file.path: file.read_bytes() for file in output.list(recursive=True)} == before
    assert main(["prune", *options, "--yes"]) == 0
    assert traces(output, REMOVED) == []
    assert len(output.list(recursive=True)) < 0.6 * len(before)
    assert set(states(raycluster.run(config)).values()) == {"skipped"}
    assert prune(config["output"], s3, yes=True)["folders"] == {}


def test_a_folder_that_is_no_run_stays_as_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "absent", tmp_path / "notes.txt"):
        assert main(["prune", "--output", str(place), "--yes"]) == 2
        error = json.loads(capfd.readouterr().out)["error"]
        assert error.startswith(f"output: {place} has no finished manifest")
        assert "give the `output` of a run" in error
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", "notes.txt"]


def test_a_damaged_manifest_is_not_taken_for_deleted_images(
    shrunk: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = copied(shrunk, tmp_path / "out")
    marker = json.loads((tmp_path / "out" / "_stages" / "manifest.json").read_text())
    (file,) = (tmp_path / "out" / marker["path"]).iterdir()
    short = pq.read_table(file).slice(0, 30).replace_schema_metadata()
    pq.write_table(short, file)
    before = tree(tmp_path / "out")
    assert main(["prune", "--output", config["output"], "--yes"]) == 4
    assert "records 60 rows, but 30 are there; restore" in json.loads(capfd.readouterr().out)["error"]
    assert tree(tmp_path / "out") == before


def test_a_folder_in_use_is_refused(shrunk: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    copied(shrunk, tmp_path / "out")
    with held(locate(str(tmp_path / "out"))):
        assert main(["prune", "--output", str(tmp_path / "out"), "--yes"]) == 1
        assert "is in use by" in json.loads(capfd.readouterr().out)["error"]
        assert main(["prune", "--output", str(tmp_path / "out")]) == 0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_fine_tuned_run_keeps_what_it_needs(tmp_path: Path) -> None:
    photos, output = tmp_path / "photos", tmp_path / "out"
    drawn_run.draw(photos)
    tuning = {"enabled": True, "rank": 4, "batch_size": 32, "epochs": 1, "max_lost_clusters": 1.0}
    bounds = {"max_lost_consistency": 1.0, "max_added_imbalance": 1.0}
    config = configuration(photos, output, method={"name": "dxmc", "epochs": 3, "batch_size": 32}, finetune={**tuning, **bounds})  # fmt: skip
    first = raycluster.run(config)
    result = prune(str(output), LOCAL, yes=True)
    assert {path.partition("/")[0] for path in result["folders"]} == {"training"}
    assert set(states(raycluster.run(config)).values()) == {"skipped"}
    gone = ["empty.jpg", next(name for name in pq.read_table(first.tables["manifest"])["image_id"].to_pylist() if "/" in name)]  # fmt: skip
    for name in gone:
        (photos / name).unlink()
    second = raycluster.run(config)
    assert {states(second)[stage] for stage in ("train", "finetune")} == {"skipped"}
    result = prune(str(output), LOCAL, yes=True)
    assert sorted(result["rows"].values()) == [1, 2, 2]
    assert len(result["warnings"]) == 2
    assert traces(locate(str(output)), gone) == []
    assert set(states(raycluster.run(config)).values()) == {"skipped"}
