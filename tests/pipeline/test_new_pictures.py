"""Test new pictures for a finished model from end to end, with real Ray, the built-in encoder and drawn pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import run_commands
from drawn_run import KINDS, READABLE

import raycluster
from raycluster.cli import main
from raycluster.demo.drawing import draw_dataset
from raycluster.errors import ArtifactError, ConfigError, DataQualityError, RayclusterError
from raycluster.pipeline.run import RunResult
from raycluster.storage.location import locate, read_table
from raycluster.storage.lock import held
from raycluster.tables.files import write_pieces
from raycluster.tables.schemas import NEW_ASSIGNMENTS

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

UNSEEN = ("key", "bicycle", "pizza", "snowman")
ONE = {"encoder_actors": 1}


@pytest.fixture(scope="module")
def new_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 new pictures of the same kinds, 40 of others, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("new")
    draw_dataset(folder / "same", 40, KINDS, seed=12)
    draw_dataset(folder / "other", 40, UNSEEN, seed=13)
    (folder / "empty.jpg").touch()
    return folder


@pytest.fixture(scope="module")
def finished(kmeans_run: RunResult, new_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    output = tmp_path_factory.mktemp("assigned") / "out"
    return raycluster.assign(model=kmeans_run.output, images=str(new_photos), output=str(output), resources=ONE)


def rows(result: RunResult) -> dict[str, dict[str, Any]]:
    return {row["image_id"]: row for row in pq.read_table(result.tables["assignments"]).to_pylist()}


def states(result: RunResult) -> dict[str, str]:
    return {stage: entry["state"] for stage, entry in result.stages.items()}


def test_every_new_picture_has_a_fate(kmeans_run: RunResult, finished: RunResult) -> None:
    assert states(finished) == dict.fromkeys(("manifest", "embed", "assign", "drift"), "ran")
    assert finished.model == kmeans_run.model
    table = pq.read_table(finished.tables["assignments"])
    assert table.schema.remove_metadata().names == NEW_ASSIGNMENTS.names
    assert table.schema.types == NEW_ASSIGNMENTS.types
    found = rows(finished)
    assert len(found) == len(table) == 81
    empty = found.pop("empty.jpg")
    assert [empty[name] for name in NEW_ASSIGNMENTS.names[3:]] == ["empty", None, None, None, None, None]
    assert all(row["status"] == "ok" and 0 <= row["cluster"] < 4 for row in found.values())
    assert "1 of 81 images could not be read: empty 1" in finished.warnings


def test_kinds_it_has_not_seen_are_outliers_more_often(finished: RunResult) -> None:
    shares = {}
    for part in ("same", "other"):
        flags = [row["outlier"] for image_id, row in rows(finished).items() if image_id.startswith(part)]
        shares[part] = np.mean(flags)
    assert shares["same"] < 0.1
    assert shares["other"] > 0.2
    assert finished.metrics["outliers"] == pytest.approx((shares["same"] + shares["other"]) / 2)


def test_predict_says_the_same(kmeans_run: RunResult, finished: RunResult, new_photos: Path) -> None:
    some = [row for row in rows(finished).values() if row["status"] == "ok"][::5]
    predicted = raycluster.load_model(kmeans_run.output).predict(
        [*(row["uri"] for row in some), str(new_photos / "empty.jpg")]
    )
    assert predicted.cluster[:-1].tolist() == [row["cluster"] for row in some]
    assert predicted.outlier.tolist() == [*(row["outlier"] for row in some), False]
    np.testing.assert_allclose(predicted.confidence[:-1], [row["confidence"] for row in some], atol=1e-4)


def test_drift_is_reported(finished: RunResult) -> None:
    figures = finished.metrics
    assert json.loads((Path(finished.tables["drift"]) / "drift.json").read_text()) == figures
    assert (figures["n"], figures["n_failed"], figures["n_training"]) == (80, 1, READABLE)
    assert (sum(figures["sizes"]), sum(figures["sizes_training"])) == (80, READABLE)
    assert figures["drifted"]
    assert figures["verdict"][1].endswith("train again if they belong to the collection")
    assert set(figures["verdict"]) < set(finished.warnings)


@pytest.mark.slow
def test_the_training_set_itself_has_not_drifted(kmeans_run: RunResult, tmp_path: Path) -> None:
    config = json.loads((Path(kmeans_run.output) / "run.json").read_text())["config"]
    for kind in KINDS:
        shutil.copytree(f"{config['images']}/{kind}", tmp_path / "photos" / kind)
    given = {"model": kmeans_run.output, "images": str(tmp_path / "photos"), "output": str(tmp_path / "out")}
    same = raycluster.assign(**given, resources=ONE)
    assert same.metrics["verdict"] == ["no drift: the pictures are like those the model was trained on"]
    assert same.metrics["confidence_shift"] == same.metrics["size_divergence"] == 0
    assert same.metrics["outliers"] == 0  # each of them is among the stored rows
    assert same.warnings == []


def test_a_second_call_does_nothing_and_says_the_same(
    kmeans_run: RunResult, finished: RunResult, new_photos: Path
) -> None:
    again = raycluster.assign(model=kmeans_run.output, images=str(new_photos), output=finished.output, resources=ONE)
    assert set(states(again).values()) == {"skipped"}
    assert (again.tables, again.metrics, again.warnings) == (finished.tables, finished.metrics, finished.warnings)


@pytest.mark.slow
def test_pictures_that_come_later_are_assigned_alone(kmeans_run: RunResult, new_photos: Path, tmp_path: Path) -> None:
    grown = tmp_path / "photos"
    shutil.copytree(new_photos / "same", grown / "same")
    given = {"model": kmeans_run.output, "images": str(grown), "output": str(tmp_path / "out"), "resources": ONE}
    first = raycluster.assign(**given)
    before = rows(first)
    # With their stamps, the first pictures would all get one cluster if they were assigned again.
    stamped = run_commands.stamp(Path(first.tables["embeddings"]).iterdir())
    shutil.copytree(new_photos / "other", grown / "other")
    second = raycluster.assign(**given)
    assert set(states(second).values()) == {"ran"}
    run_commands.check_stamped(second.tables["embeddings"], stamped)
    after = rows(second)
    assert {image_id: after.pop(image_id) for image_id in before} == before
    assert {image_id.split("/")[0] for image_id in after} == {"other"}
    assert second.metrics["n"] == 80


@pytest.mark.slow
def test_what_a_killed_call_has_written_is_kept(kmeans_run: RunResult, finished: RunResult, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished.output, output)
    for stage in ("embed", "assign", "drift"):
        for marker in (output / "_stages").rglob(f"{stage}*.json"):
            marker.unlink()
    # Half of the rows are there, in pieces. Assignments are written after the embeddings.
    for table, count in (("embeddings", 40), ("assignments", 24)):
        folder = locate(str(output / table / Path(finished.tables[table]).name))
        (file,) = folder.list()
        written = read_table([file]).slice(0, count)
        file.delete()
        write_pieces(folder, written)
    stamped = run_commands.stamp((output / "embeddings").rglob("*.parquet"))
    assert 35 <= len(stamped) <= 40
    config = json.loads((output / "run.json").read_text())["config"]
    again = raycluster.assign(**{**config, "output": str(output)})
    assert states(again) == {"manifest": "skipped", "embed": "ran", "assign": "ran", "drift": "ran"}
    run_commands.check_stamped(again.tables["embeddings"], stamped)
    # The stamped rows that had no assignment yet were assigned by their stamps.
    by_stamp = set(stamped) - set(written.column("row_id").to_pylist())
    found = rows(again)
    assert found.keys() == rows(finished).keys()
    assert all(found[name] == row for name, row in rows(finished).items() if row["row_id"] not in by_stamp)


@pytest.mark.slow
def test_the_model_alone_is_enough(
    kmeans_run: RunResult, finished: RunResult, new_photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(kmeans_run.model or "", tmp_path / "model")
    options = ["--images", str(new_photos), "--output", str(tmp_path / "out"), "--resources.encoder_actors", "1"]
    assert main(["assign", "--model", str(tmp_path / "model"), *options]) == 0
    result = json.loads(capfd.readouterr().out)
    assert list(result) == ["command", "status", "output", "stages", "tables", "model", "metrics", "report", "warnings"]
    assert (result["command"], result["status"]) == ("assign", "ok")
    assert result["metrics"] == finished.metrics
    assert rows(RunResult(**result)) == rows(finished)
    assert main(["status", str(tmp_path / "out")]) == 0
    status = json.loads(capfd.readouterr().out)
    assert status["status"] == "ok"
    assert status["metrics"] == finished.metrics
    # Loading the parent folder finds the run's current model.
    assert raycluster.load_model(Path(kmeans_run.model or "").parent).folder.uri == kmeans_run.model


def test_a_dry_run_writes_nothing(kmeans_run: RunResult, new_photos: Path, tmp_path: Path) -> None:
    dry = raycluster.assign(model=kmeans_run.output, images=str(new_photos), output=str(tmp_path / "out"), dry_run=True)
    assert set(states(dry).values()) == {"would run"}
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_too_many_failures_are_exit_3(kmeans_run: RunResult, new_photos: Path, tmp_path: Path) -> None:
    given = {"model": kmeans_run.output, "images": str(new_photos), "output": str(tmp_path / "out"), "resources": ONE}
    with pytest.raises(DataQualityError, match=r"1 of 81 images \(1\.2%\) could not be read"):
        raycluster.assign(**given, max_failed_fraction=0.0)
    assert states(raycluster.assign(**given))["embed"] == "ran"  # embeds the rest


@pytest.fixture(scope="module")
def of_embeddings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The configuration of a run on ready-made embeddings of three kinds, up to its model. One test adds rows to its file."""
    folder = tmp_path_factory.mktemp("ready")
    write(folder / "embeddings.parquet", 60, 0)
    config = {"embeddings": str(folder / "embeddings.parquet"), "output": str(folder / "run"), "clusters": 3}
    raycluster.run({**config, "method": {"name": "kmeans"}}, until="train")
    return {**config, "method": {"name": "kmeans"}}


def write(file: Path, n: int, seed: int, foreign: int = 0) -> None:
    """`n` embeddings around three centers, and some in other directions."""
    centers, rng = np.random.default_rng(5).normal(size=(3, 16)), np.random.default_rng(seed)
    vectors = np.repeat(centers, -(-n // 3), axis=0)[:n] + 0.2 * rng.normal(size=(n, 16))
    vectors = np.concatenate([vectors, rng.normal(size=(foreign, 16))])
    names = [f"photo {i}" for i in range(n)] + [f"foreign {i}" for i in range(foreign)]
    pq.write_table(pa.table({"image_id": names, "embedding": list(vectors)}), file)


def test_embeddings_for_a_model_of_embeddings(of_embeddings: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "new.parquet", 30, 1, foreign=10)
    given = {"model": of_embeddings["output"], "embeddings": str(tmp_path / "new.parquet")}
    result = raycluster.assign(**given, output=str(tmp_path / "out"))
    flags = {image_id: row["outlier"] for image_id, row in rows(result).items()}
    assert all(flags[name] for name in flags if name.startswith("foreign"))
    assert sum(flags.values()) <= 12
    assert result.metrics["drifted"]


def test_grown_embeddings_are_assigned_alone(of_embeddings: dict[str, Any]) -> None:
    first = raycluster.run(of_embeddings, until="assign")
    before = rows(first)
    stamped = run_commands.stamp(Path(first.tables["embeddings"]).iterdir())
    write(Path(of_embeddings["embeddings"]), 60, 0, foreign=5)
    second = raycluster.run(of_embeddings, until="assign")
    assert states(second) == {"manifest": "ran", "embed": "ran", "train": "skipped", "assign": "ran"}
    run_commands.check_stamped(second.tables["embeddings"], stamped)
    after = rows(second)
    assert {image_id: after.pop(image_id) for image_id in before} == before
    assert sorted(after) == [f"foreign {i}" for i in range(5)]


def test_bad_input_is_one_clear_error_before_any_work(
    kmeans_run: RunResult, of_embeddings: dict[str, Any], new_photos: Path, tmp_path: Path
) -> None:
    write(tmp_path / "new.parquet", 30, 1)
    pictures = {"images": str(new_photos), "output": str(tmp_path / "out")}
    numbers = {"embeddings": str(tmp_path / "new.parquet"), "output": str(tmp_path / "out")}
    cases: list[tuple[dict[str, Any], str]] = [
        ({**pictures, "model": str(tmp_path)}, "neither a run folder with a finished model nor a model folder"),
        ({**pictures, "model": of_embeddings["output"]}, "images: .* was trained on ready-made embeddings"),
        ({**numbers, "model": kmeans_run.output}, "embeddings: they have 16 dimensions, but the model takes 96"),
        ({**pictures, **numbers, "model": kmeans_run.output}, "exactly one of `images` and `embeddings`"),
        ({"output": str(tmp_path / "out"), "model": kmeans_run.output}, "exactly one of `images` and `embeddings`"),
        ({**pictures, "model": kmeans_run.output, "output": kmeans_run.output}, "output: .* is the folder of a run"),
        ({**pictures, "model": kmeans_run.model, "output": kmeans_run.model}, "output: .* is the folder of the model"),
        ({**pictures, "model": kmeans_run.output, "clusters": 3}, "unknown key `clusters`"),
        ({**pictures, "model": kmeans_run.output, "images": "/nowhere/at/all"}, "/nowhere/at/all"),
    ]
    for given, message in cases:
        with pytest.raises(ConfigError, match=message):
            raycluster.assign(**given)
    assert (
        main(["assign", "--model", kmeans_run.output, "--retrain", "--images", str(new_photos), "--output", "x"]) == 2
    )
    with held(locate(str(tmp_path / "taken"))), pytest.raises(RayclusterError, match="is in use by process"):
        raycluster.assign(**{**pictures, "model": kmeans_run.output, "output": str(tmp_path / "taken")})
    assert not (tmp_path / "out" / "embeddings").exists()


def test_a_damaged_memory_is_found(kmeans_run: RunResult, tmp_path: Path) -> None:
    shutil.copytree(kmeans_run.model or "", tmp_path / "model")
    (tmp_path / "model" / "novelty.safetensors").write_bytes(b"0")
    with pytest.raises(ArtifactError, match=r"novelty\.safetensors is not the file"):
        raycluster.load_model(tmp_path / "model")
