"""Test a run with fine-tuning from end to end: what it writes and keeps, when the tuned encoder is refused, and that it survives kills."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ray_workers import checkpoints, children
from safetensors.torch import load_file

import raycluster
from raycluster.cli import main
from raycluster.config import EncoderConfig
from raycluster.demo.drawing import draw_dataset
from raycluster.encoder.clip import ClipEncoder
from raycluster.encoder.weights import find_weights
from raycluster.errors import ConfigError
from raycluster.pipeline.run import RunResult
from raycluster.pipeline.stages import RUN

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(400)]

STAGES = tuple(stage.name for stage in RUN if stage.name != "shard")
NOUNS = ("house", "fish", "tree", "star", "car", "cup", "bird", "flower")
TUNING = {"enabled": True, "rank": 8, "learning_rate": 1e-4, "batch_size": 16, "epochs": 2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 good pictures and a broken one; the last test adds some."""
    folder = tmp_path_factory.mktemp("photos")
    draw_dataset(folder, 48, ("house", "fish", "tree", "star"), seed=11)
    (folder / "text.jpg").write_text("not a picture")
    return folder


def configuration(photos: Path, output: Path, **tuning: Any) -> dict[str, Any]:
    nouns = output.parent / "nouns.txt"
    nouns.write_text("\n".join(NOUNS))
    return {
        "images": str(photos),
        "output": str(output),
        "clusters": 4,
        "labels": "folder",
        "encoder": {"model": "builtin"},
        "vocabulary": {"source": str(nouns), "cache": str(output.parent / "cache")},
        "resources": {"encoder_actors": 1},
        "finetune": {**TUNING, **tuning},
    }


def table(result: RunResult, name: str) -> pa.Table:
    return pq.read_table(result.tables[name]).sort_by("row_id")


def ran(result: RunResult) -> list[str]:
    return [stage for stage, entry in result.stages.items() if entry["state"] == "ran"]


@pytest.fixture(scope="module")
def finished(
    photos: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None
) -> tuple[dict[str, Any], RunResult]:
    config = configuration(photos, tmp_path_factory.mktemp("run") / "out")
    return config, raycluster.run(config)


def test_the_tuned_encoder_embeds_and_assigns(finished: tuple[dict[str, Any], RunResult]) -> None:
    config, result = finished
    assert ran(result) == list(STAGES)
    before, after = table(result, "baseline"), table(result, "assignments")
    assert before["row_id"].equals(after["row_id"])
    assert before["status"].equals(after["status"])
    assert not before["confidence"].equals(after["confidence"])
    rows = [row for row in after.to_pylist() if row["status"] == "ok"][:8]
    predicted = raycluster.load_model(config["output"]).predict([row["uri"] for row in rows])
    assert predicted.cluster.tolist() == [row["cluster"] for row in rows]
    np.testing.assert_allclose(predicted.confidence, [row["confidence"] for row in rows], atol=1e-4)


def test_the_model_holds_a_plain_tower_and_the_adapter_beside_it(finished: tuple[dict[str, Any], RunResult]) -> None:
    _, result = finished
    folder = Path(result.model or "")
    assert {file.name for file in folder.iterdir()} == {
        "model.json", "heads.safetensors", "novelty.safetensors", "snapshot.safetensors", "clusters.json",
        "encoder.safetensors", "adapter.safetensors",
    }  # fmt: skip
    model = raycluster.load_model(folder)
    weights = find_weights(EncoderConfig(model="builtin"))
    plain = open_clip.create_model(weights.model, require_pretrained=True).eval()
    plain.visual.load_state_dict(load_file(folder / "encoder.safetensors"))
    pixels = torch.randint(0, 256, (3, *model.spec.pixel_shape), dtype=torch.uint8)
    with torch.inference_mode():
        expected = plain.encode_image(ClipEncoder.load(model.spec, "cpu").normalized(pixels))
    np.testing.assert_allclose(model.encoder.encode_pixels(pixels.numpy()), expected.numpy(), atol=2e-3)
    adapter = load_file(folder / "adapter.safetensors")
    assert {name.rsplit(".", 1)[1] for name in adapter} == {"a", "b"}


def test_new_pictures_are_read_by_the_tuned_encoder(finished: tuple[dict[str, Any], RunResult], tmp_path: Path) -> None:
    config, result = finished
    shutil.copytree(result.model or "", tmp_path / "model")
    draw_dataset(tmp_path / "new", 8, ("fish", "tree"), seed=4)
    given = {"model": str(tmp_path / "model"), "images": str(tmp_path / "new"), "output": str(tmp_path / "out")}
    rows = table(raycluster.assign(**given, resources={"encoder_actors": 1}), "assignments").to_pylist()
    predicted = raycluster.load_model(config["output"]).predict([row["uri"] for row in rows])
    assert predicted.cluster.tolist() == [row["cluster"] for row in rows]
    assert predicted.outlier.tolist() == [row["outlier"] for row in rows]
    np.testing.assert_allclose(predicted.confidence, [row["confidence"] for row in rows], atol=1e-4)
    # The model remembers embeddings of the tuned encoder, so it flags no row of the training set.
    embedded = table(result, "embeddings").filter(pa.compute.field("status") == "ok")
    known = np.array(embedded.column("embedding").to_pylist())
    model = raycluster.load_model(tmp_path / "model")
    assert not model.predict(known).outlier.any()
    assert model.snapshot.sizes.sum() == 48


def test_the_report_and_the_metrics_compare(finished: tuple[dict[str, Any], RunResult]) -> None:
    config, result = finished
    page = Path(result.report or "").read_text()
    assert "of the images kept their cluster" in page
    assert "<th>before</th><th>after</th>" in page
    marker = json.loads((Path(config["output"]) / "_stages" / "evaluate.json").read_text())
    assert marker["facts"]["before"].keys() == result.metrics.keys()
    assert 0 <= marker["facts"]["agreement"] <= 1


def test_a_second_run_does_nothing(finished: tuple[dict[str, Any], RunResult]) -> None:
    config, _ = finished
    assert ran(raycluster.run(config)) == []


def test_without_fine_tuning_the_model_before_is_current_again(
    finished: tuple[dict[str, Any], RunResult], capfd: pytest.CaptureFixture[str]
) -> None:
    config, first = finished
    off = raycluster.run({**config, "finetune": {}})
    assert not {"baseline", "finetune", "reembed"} & off.stages.keys()
    assert table(off, "assignments").equals(table(first, "baseline"))
    assert off.model != first.model
    assert "finetune" not in raycluster.load_model(config["output"]).record
    assert main(["status", config["output"]]) == 0
    status = json.loads(capfd.readouterr().out)
    assert status["status"] == "ok"
    assert status["model"] == off.model
    back = raycluster.run(config)
    assert ran(back) == []
    assert back.model == first.model


def forked(finished: tuple[dict[str, Any], RunResult], output: Path, **tuning: Any) -> dict[str, Any]:
    """The configuration of a run with other fine-tuning, in a copy of the finished run, so that only the fine-tuning is left to do."""
    config, _ = finished
    shutil.copytree(config["output"], output)
    return {**config, "output": str(output), "finetune": {**TUNING, **tuning}}


@pytest.mark.torture
def test_a_collapse_keeps_the_model_before_and_says_so(
    finished: tuple[dict[str, Any], RunResult], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = forked(finished, tmp_path / "out", learning_rate=0.3)
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config))
    assert main(["run", "--config", str(file)]) == 0
    result = json.loads(capfd.readouterr().out)
    (warning,) = [w for w in result["warnings"] if "fine-tuning has collapsed" in w]
    assert "finetune.max_lost" in warning
    assert "reembed" not in result["stages"]
    assert table(RunResult(**result), "assignments").equals(table(RunResult(**result), "baseline"))
    assert "finetune" not in raycluster.load_model(config["output"]).record
    assert "Fine-tuning has collapsed" in Path(result["report"]).read_text()
    assert main(["status", config["output"]]) == 0
    status = json.loads(capfd.readouterr().out)
    assert warning in status["warnings"]
    assert status["status"] == "ok"
    # A user who wants this encoder nevertheless raises the bounds, and nothing is trained again.
    bounds = {f"max_{name}": 1 for name in ("lost_clusters", "lost_consistency", "added_imbalance")}
    wanted = raycluster.run({**config, "finetune": {**config["finetune"], **bounds}})
    assert ran(wanted) == ["reembed", "assign", "describe", "evaluate", "report"]
    assert "finetune" in raycluster.load_model(config["output"]).record


def test_the_command_needs_it_enabled(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"finetune\.enabled is false"):
        raycluster.run({**configuration(photos, tmp_path / "out"), "finetune": {}}, until="finetune")


def latest_step(output: Path) -> int:
    """The highest step of the checkpoints of fine-tuning. A checkpoint that is just being written or removed does not count."""
    found = [0]
    for path in checkpoints(output / "training"):
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            record = json.loads((path.parent / "record.json").read_text())
            found += [record["step"]] if isinstance(record, dict) else []
    return max(found)


@pytest.mark.torture
def test_killed_raylet_and_killed_driver_resume_at_the_last_checkpoint(
    finished: tuple[dict[str, Any], RunResult], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    config = forked(finished, output, epochs=8, checkpoint_seconds=0)
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config))
    command = [str(Path(sys.executable).parent / "raycluster"), "finetune", "--config", str(file)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    reached = latest_step(output)
    for victim in ("raylet", "driver"):
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        deadline = time.monotonic() + 100
        while latest_step(output) <= reached:
            assert driver.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (pid,) = [driver.pid] if victim == "driver" else children(driver.pid, "raylet")
        os.kill(pid, signal.SIGKILL)
        assert driver.wait(timeout=100) != 0
        reached = latest_step(output)
        assert reached < 24
    again = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout)
    assert result["stages"]["finetune"]["state"] == "ran"
    assert len(raycluster.load_model(result["model"]).record["finetune"]["history"]) == 8


def test_added_images_are_embedded_by_both_encoders_and_train_nothing(
    finished: tuple[dict[str, Any], RunResult], photos: Path
) -> None:
    config, _ = finished
    draw_dataset(photos / "more", 8, ("fish",), seed=3)
    again = raycluster.run(config)
    assert set(STAGES) - set(ran(again)) == {"train", "finetune"}
    for name in ("assignments", "embeddings", "baseline"):
        assert len(table(again, name)) == 57
