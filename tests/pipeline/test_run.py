"""Test `raycluster.run` from end to end, with real Ray, the built-in encoder, drawn pictures, and files that are no pictures."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import run_commands
import yaml
from drawn_run import NOUNS, READABLE, UGLY, configuration, copied
from PIL import Image

import raycluster
from raycluster.cli import main
from raycluster.errors import ConfigError, DataQualityError
from raycluster.pipeline.run import RunResult
from raycluster.pipeline.stages import RUN
from raycluster.results.report import pages
from raycluster.tables.schemas import ASSIGNMENTS, CLUSTERS, MANIFEST, embeddings_schema

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

ROOT = Path(__file__).resolve().parents[2]
PLAIN = tuple(stage.name for stage in RUN if stage.name not in ("shard", "baseline", "finetune", "reembed"))
FOLDERS = {stage.name: stage.folder for stage in RUN}
LISTED = READABLE + len(UGLY)


def table(result: RunResult, name: str) -> pa.Table:
    return pq.read_table(result.tables[name])


def states(result: RunResult) -> dict[str, str]:
    return {stage: entry["state"] for stage, entry in result.stages.items()}


def test_every_table_is_as_the_design_has_it(dxmc_run: tuple[dict[str, Any], RunResult]) -> None:
    _, result = dxmc_run
    assert states(result) == dict.fromkeys(PLAIN, "ran")
    expected = {
        "manifest": MANIFEST,
        "embeddings": embeddings_schema(96),
        "assignments": ASSIGNMENTS,
        "clusters": CLUSTERS,
    }
    for name, schema in expected.items():
        found = table(result, name).schema.remove_metadata()
        assert found.names == schema.names
        assert found.types == schema.types, name
    assert table(result, "manifest").num_rows == LISTED


TOY = '''
"""Count the clusters."""

from raycluster.pipeline.stage import Keeps, Outcome, Recipe, Stage


def recipe(ctx):
    return Recipe({"clusters": ctx.fingerprint("describe")})


def run(ctx, step):
    (ctx.place(step) / "count.json").write_json({"count": len(ctx.model.names)})
    return Outcome(1)


STAGE = Stage(
    name="toy", folder="toys", keeps=Keeps.FIXED, recipe=recipe, run=run, help="count the clusters", figures="count.json"
)
'''


def test_a_stage_is_one_file_a_word_in_the_list_and_a_job(
    dxmc_run: tuple[dict[str, Any], RunResult], tmp_path: Path
) -> None:
    code, jobs, output = tmp_path / "code" / "raycluster", tmp_path / "jobs", tmp_path / "out"
    shutil.copytree(Path(raycluster.__file__).parent, code, ignore=shutil.ignore_patterns("__pycache__"))
    stages = code / "pipeline" / "stages"
    (stages / "toy.py").write_text(TOY)
    listed = (stages / "__init__.py").read_text()
    listed = listed.replace("    train,\n)", "    toy,\n    train,\n)").replace(
        "report.STAGE,", "report.STAGE,\n    toy.STAGE,"
    )
    (stages / "__init__.py").write_text(listed)
    jobs.mkdir()
    (jobs / "toy.py").write_text((ROOT / "jobs" / "report.py").read_text().replace("report", "toy"))
    shutil.copytree(dxmc_run[0]["output"], output)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**dxmc_run[0], "output": str(output)}))

    def finished(*command: str) -> dict[str, Any]:
        own = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        environment = {**own, "PYTHONPATH": str(code.parent)}
        words = [sys.executable, *command]
        done = subprocess.run(words, capture_output=True, text=True, timeout=200, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    result = finished(str(jobs / "toy.py"), "--config", str(tmp_path / "run.yaml"))
    assert result["stages"]["toy"]["state"] == "ran"
    assert {entry["state"] for stage, entry in result["stages"].items() if stage != "toy"} == {"skipped"}
    assert result["metrics"]["count"] == 4
    assert finished("-m", "raycluster.cli", "status", str(output))["stages"]["toy"]["state"] == "done"


def test_every_image_has_a_fate(dxmc_run: tuple[dict[str, Any], RunResult]) -> None:
    _, result = dxmc_run
    manifest, assigned = table(result, "manifest"), table(result, "assignments")
    assert sorted(assigned["row_id"].to_pylist()) == sorted(manifest["row_id"].to_pylist())
    rows = {row["image_id"]: row for row in assigned.to_pylist()}
    for image_id, status in UGLY.items():
        row = rows.pop(image_id)
        assert row["status"] == status
        assert [row[name] for name in ("cluster", "confidence", "margin", "runner_up")] == [None] * 4
    for row in rows.values():
        assert row["status"] == "ok"
        assert 0 <= row["cluster"] < 4
        assert row["runner_up"] != row["cluster"]
        assert 0 <= row["margin"] <= row["confidence"] <= 1
    reasons = [r for r in table(result, "embeddings").to_pylist() if r["status"] != "ok"]
    assert all(row["error"] and row["embedding"] is None for row in reasons)


def test_scores_and_names_make_sense(dxmc_run: tuple[dict[str, Any], RunResult]) -> None:
    _, result = dxmc_run
    assert result.metrics["n_labelled"] == READABLE
    assert result.metrics["acc"] > 0.5  # chance gives 0.25
    clusters = table(result, "clusters")
    names = clusters["name"].to_pylist()
    assert len(set(names)) == 4
    assert set(names) <= set(NOUNS)
    assert sum(clusters["size"].to_pylist()) == READABLE
    assert f"4 of {LISTED} images could not be read" in result.warnings[0]


def test_the_model_predicts_what_the_batch_assigned(dxmc_run: tuple[dict[str, Any], RunResult], photos: Path) -> None:
    config, result = dxmc_run
    model = raycluster.load_model(config["output"])
    rows = [row for row in table(result, "assignments").to_pylist() if row["status"] == "ok"][:8]
    from_files = model.predict([row["uri"] for row in rows])
    assert from_files.cluster.tolist() == [row["cluster"] for row in rows]
    np.testing.assert_allclose(from_files.confidence, [row["confidence"] for row in rows], atol=1e-4)
    embedded = {row["row_id"]: row["embedding"] for row in table(result, "embeddings").to_pylist()}
    from_embeddings = model.predict(np.array([embedded[row["row_id"]] for row in rows]))
    assert from_embeddings.name == from_files.name
    mixed = model.predict([Image.open(rows[0]["uri"]), (photos / "text.jpg").read_bytes(), str(photos / "gone.jpg")])
    assert mixed.status == ["ok", "undecodable", "missing"]
    assert mixed.cluster[0] == rows[0]["cluster"]
    assert mixed.cluster[1:].tolist() == [-1, -1]
    # Many pictures are read slice by slice, and come out in their order.
    many = model.predict([row["uri"] for row in rows] * 40)
    assert many.cluster.tolist() == from_files.cluster.tolist() * 40
    assert model.predict([]).cluster.tolist() == []
    with pytest.raises(ConfigError, match=r"\[n, 96\]"):
        model.predict(np.zeros((2, 5), np.float32))


def test_a_second_run_does_nothing(dxmc_run: tuple[dict[str, Any], RunResult]) -> None:
    config, first = dxmc_run
    again = raycluster.run(config)
    assert states(again) == dict.fromkeys(PLAIN, "skipped")
    assert (again.tables, again.model, again.metrics, again.report) == (
        first.tables,
        first.model,
        first.metrics,
        first.report,
    )


def test_a_changed_number_of_clusters_keeps_the_embeddings(dxmc_run: tuple[dict[str, Any], RunResult]) -> None:
    config, first = dxmc_run
    dry = raycluster.run({**config, "clusters": 5}, dry_run=True)
    assert [stage for stage, state in states(dry).items() if state == "would run"] == list(PLAIN[2:])
    changed = raycluster.run({**config, "clusters": 5, "method": {"name": "kmeans"}})
    assert [stage for stage, state in states(changed).items() if state == "ran"] == list(PLAIN[2:])
    back = raycluster.run(config)
    assert states(back) == dict.fromkeys(PLAIN, "skipped")
    assert raycluster.load_model(config["output"]).method.name == "dxmc"
    assert back.tables == first.tables


def test_a_dry_run_writes_nothing(photos: Path, tmp_path: Path) -> None:
    dry = raycluster.run(configuration(photos, tmp_path / "out"), dry_run=True)
    assert states(dry) == dict.fromkeys(PLAIN, "would run")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_added_images_are_embedded_and_assigned_alone(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos / "fish", folder / "fish")
    shutil.copytree(photos / "tree", folder / "tree")
    config = configuration(folder, tmp_path / "out", clusters=2, method={"name": "kmeans"})
    first = raycluster.run(config)
    stamped = run_commands.stamp(Path(first.tables["embeddings"]).iterdir())
    shutil.copytree(photos / "star", folder / "star")
    second = raycluster.run(config)
    assert {stage for stage, state in states(second).items() if state == "skipped"} == {"train"}
    run_commands.check_stamped(second.tables["embeddings"], stamped)
    assert table(second, "assignments").num_rows == 3 * READABLE // 4
    # When an image is removed, its row is removed too, but the model stays.
    next((folder / "fish").iterdir()).unlink()
    third = raycluster.run(config)
    assert states(third)["train"] == "skipped"
    assert table(third, "assignments").num_rows == 3 * READABLE // 4 - 1


def test_a_command_for_one_stage_uses_the_manifest_that_is_there(
    photos: Path, dxmc_run: tuple[dict[str, Any], RunResult], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, output, grown = dxmc_run[0], tmp_path / "out", tmp_path / "photos"
    shutil.copytree(config["output"], output)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**config, "output": str(output)}))

    def result(*command: str) -> dict[str, Any]:
        assert main([*command, "--config", str(tmp_path / "run.yaml")]) == 0
        printed: dict[str, Any] = json.loads(capfd.readouterr().out)
        return printed["stages"]

    assert {entry["state"] for entry in result("report").values()} == {"skipped"}
    marker = json.loads((output / "_stages" / "manifest.json").read_text())
    assert marker["facts"]["samples"][0][0].startswith(str(photos))
    # Without the pictures' folder only a listing would fail.
    source = photos.rename(grown)
    try:
        assert {entry["state"] for entry in result("evaluate").values()} == {"skipped"}
        assert main(["run", "--config", str(tmp_path / "run.yaml")]) == 2
        assert f"{photos} does not exist" in capfd.readouterr().err
    finally:
        source.rename(photos)


@pytest.mark.slow
def test_a_finished_table_passes_or_not_as_the_limit_is_now(photos: Path, tmp_path: Path) -> None:
    config = configuration(photos, tmp_path / "out", method={"name": "kmeans"})
    raycluster.run(config, until="embed")
    with pytest.raises(DataQualityError) as caught:
        raycluster.run({**config, "max_failed_fraction": 0.01}, until="embed")
    assert "4 of 84 images (4.8%) could not be read; max_failed_fraction allows 1.0%" in str(caught.value)
    assert all(name in str(caught.value) for name in UGLY)
    assert states(raycluster.run({**config, "max_failed_fraction": 0.1}, until="train"))["embed"] == "skipped"


@pytest.fixture(scope="module")
def mostly_broken(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """480 pictures that lack their end, so that decoding fails only there, and then 48 good ones."""
    folder = tmp_path_factory.mktemp("broken")
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), np.uint8)
    Image.fromarray(noise).save(folder / "a-000.png")
    content = (folder / "a-000.png").read_bytes()
    (folder / "a-000.png").write_bytes(content[: len(content) * 9 // 10])
    for number in range(1, 480):
        (folder / f"a-{number:03}.png").hardlink_to(folder / "a-000.png")
    for number, file in enumerate(sorted(photos.glob("*/*"))[:48]):
        shutil.copy(file, folder / f"b-{number:03}{file.suffix}")
    return folder


@pytest.mark.parametrize("stage", ["embed", pytest.param("shard", marks=pytest.mark.slow)])
def test_too_many_failures_stop_a_stage_before_it_has_read_everything(
    stage: str, mostly_broken: Path, tmp_path: Path
) -> None:
    config = configuration(mostly_broken, tmp_path / "out", labels=None, shards={"enabled": stage == "shard"})

    def ids() -> list[int]:
        files = (tmp_path / "out" / FOLDERS[stage]).glob("*/part*")
        return [row for file in files for row in pq.read_table(file, columns=["row_id"])["row_id"].to_pylist()]

    with pytest.raises(
        DataQualityError, match=r"of 528 images .* could not be read, and \d+ were not tried any"
    ) as caught:
        raycluster.run(config, until=stage)
    assert "a-" in str(caught.value)
    read = ids()
    assert 0 < len(read) < 528
    # Rows that an earlier call has read count.
    with pytest.raises(DataQualityError, match="were not tried any more"):
        raycluster.run(config, until=stage)
    assert sorted(ids()) == sorted(read)
    result = raycluster.run({**config, "max_failed_fraction": 0.95}, until=stage)
    assert states(result)[stage] == "ran"
    assert sorted(ids()) == list(range(528))


@pytest.fixture(scope="module")
def ready_made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A configuration without encoder. Of 60 embeddings of three kinds one is NaN, and half have labels. One of three nouns is there twice."""
    folder = tmp_path_factory.mktemp("ready")
    rng = np.random.default_rng(5)
    centers = rng.normal(size=(3, 16))
    vectors = np.repeat(centers, 20, axis=0) + 0.2 * rng.normal(size=(60, 16))
    vectors[7] = np.nan
    labels = [None if i % 2 else f"kind {i // 20}" for i in range(60)]
    given = {"image_id": [f"photo {i}" for i in range(60)], "embedding": list(vectors), "label": labels}
    pq.write_table(pa.table(given), folder / "embeddings.parquet")
    nouns = {
        "noun": ["cat", "dog", "owl", "cat"],
        "embedding": list(np.vstack([centers, centers[:1]]).astype(np.float32)),
    }
    pq.write_table(pa.table(nouns), folder / "nouns.parquet")
    return {
        "embeddings": str(folder / "embeddings.parquet"),
        "vocabulary": {"embeddings": str(folder / "nouns.parquet")},
        "clusters": 3,
    }


FITTED: list[dict[str, Any]] = [{"name": "consensus"}, {"name": "kmeans"}, {"name": "tac", "trained": False}]
TRAINED: list[dict[str, Any]] = [
    {"name": "tac", "epochs": 200, "batch_size": 32},
    {"name": "dxmc", "epochs": 200, "batch_size": 32},
    {"name": "sic", "relevant_nouns": 2, "center_nouns": 1},
    {"name": "sic", "relevant_nouns": 2, "center_nouns": 1, "init": "consensus"},
    {"name": "seic"},
]
# Trained methods differ in modules that have tests of their own, and one of them is trained on pictures.
EVERY_METHOD = [
    *FITTED,
    *(pytest.param(method, marks=pytest.mark.torture) for method in TRAINED),
]


@pytest.mark.parametrize("method", EVERY_METHOD, ids=lambda method: "-".join(map(str, method.values())))
def test_ready_made_embeddings_need_no_encoder(
    method: dict[str, Any], ready_made: dict[str, Any], tmp_path: Path
) -> None:
    result = raycluster.run({**ready_made, "output": str(tmp_path / "out"), "method": method})
    assert result.metrics["acc"] == 1.0
    assert result.metrics["n_labelled"] == 30
    assert set(table(result, "clusters")["name"].to_pylist()) == {"cat", "dog", "owl"}
    bad = table(result, "assignments").filter(pa.compute.field("image_id") == "photo 7").to_pylist()[0]
    assert (bad["status"], bad["cluster"]) == ("failed", None)
    given = pq.read_table(ready_made["embeddings"]).filter(pa.compute.field("image_id") != "photo 7")
    predicted = raycluster.load_model(tmp_path / "out").predict(np.array(given.column("embedding").to_pylist()))
    good = table(result, "assignments").filter(pa.compute.field("status") == "ok").sort_by("image_id")
    order = np.argsort(given.column("image_id").to_pylist())
    assert predicted.cluster[order].tolist() == good.column("cluster").to_pylist()
    np.testing.assert_allclose(predicted.confidence[order], good.column("confidence").to_numpy(), atol=1e-4)


def test_nouns_of_another_encoder_are_refused(ready_made: dict[str, Any], tmp_path: Path) -> None:
    pq.write_table(pa.table({"noun": ["cat", "dog"], "embedding": [[1.0, 0.0], [0.0, 1.0]]}), tmp_path / "n.parquet")
    config = {**ready_made, "output": str(tmp_path / "out"), "vocabulary": {"embeddings": str(tmp_path / "n.parquet")}}
    with pytest.raises(ConfigError, match=r"vocabulary\.embeddings: nouns have 2 dimensions, but images have 16"):
        raycluster.run(config)


def test_without_nouns_only_methods_without_text_run(ready_made: dict[str, Any], tmp_path: Path) -> None:
    without = {**ready_made, "vocabulary": {}, "output": str(tmp_path / "out"), "method": {"name": "dxmc"}}
    with pytest.raises(ConfigError, match=r"vocabulary\.embeddings: method dxmc needs nouns"):
        raycluster.run(without)
    for method in ("kmeans", "consensus"):
        named = raycluster.run({**without, "method": {"name": method}})
        assert table(named, "clusters")["name"].to_pylist() == ["cluster 0", "cluster 1", "cluster 2"]
        assert named.metrics["acc"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clusters": 500}, "clusters: 500 clusters, but only 84 images were found"),
        ({"images": "/nowhere/at/all"}, "/nowhere/at/all"),
        (
            {"method": {"name": "magic"}},
            "method.name: unknown method 'magic'; choose one of consensus, dxmc, kmeans, seic, sic, tac",
        ),
        ({"method": {"name": "kmeans", "epochs": 3}}, "unknown key `epochs`"),
        ({"encoder": {"model": "ViT-Z", "pretrained": "x"}}, "encoder.model: open_clip knows no architecture 'ViT-Z'"),
        ({"encoder": {"model": "local-dir:/nowhere"}}, "encoder.model: the folder /nowhere does not exist"),
        ({"vocabulary": {"source": "nouns.doc"}}, "vocabulary.source"),
        ({"vocabulary": {"source": "wordnet", "path": "nothing:1"}}, "vocabulary.path"),
        ({"output": "/proc/raycluster"}, "output: /proc/raycluster cannot be written"),
        ({"resources": {"train_workers": 4000}}, "resources.train_workers is 4000"),
        (
            {"finetune": {"enabled": True}, "method": {"name": "kmeans"}},
            "finetune.enabled: method kmeans has no image head",
        ),
        ({"method": {"name": "kmeans", "train_sample": 3}}, "method.train_sample: 3 images cannot train 4 clusters"),
    ],
)
def test_bad_configuration_is_one_clear_error_before_any_work(
    photos: Path, tmp_path: Path, change: dict[str, Any], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({**configuration(photos, tmp_path / "out"), **change}))  # JSON is YAML
    assert main(["run", "--config", str(file)]) == 2
    printed = capfd.readouterr()
    result = json.loads(printed.out)
    assert message in result["error"]
    assert "Traceback" not in printed.err
    assert not (tmp_path / "out" / "embeddings").exists()


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").touch()
    with pytest.raises(ConfigError, match="1 other file"):
        raycluster.run(configuration(tmp_path / "photos", tmp_path / "out"))


def test_status_says_what_is_done_and_what_failed(
    dxmc_run: tuple[dict[str, Any], RunResult], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config, _ = dxmc_run
    assert main(["status", config["output"]]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["stages"]["embed"]["failed"] == {"empty": 1, "missing": 1, "undecodable": 2}
    assert result["status"] == "ok"
    assert main(["status", str(tmp_path)]) == 2


def test_the_report_of_very_many_clusters_is_a_folder(
    dxmc_run: tuple[dict[str, Any], RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "ONE_PAGE", 3)
    monkeypatch.setattr(pages, "CARDS", 2)
    result = copied(dxmc_run[0], tmp_path / "out", until="report", report={"map_sample": 30})
    assert [stage for stage, state in states(result).items() if state == "ran"] == ["report"]
    index = Path(str(result.report))
    assert index.name == "index.html"
    found = sorted(str(file.relative_to(index.parent)) for file in index.parent.rglob("*.html"))
    assert found == ["clusters/0001.html", "clusters/0002.html", "index.html"]
    shown = [src for page in found[:2] for src in re.findall(r'<img src="([^"]+)"', (index.parent / page).read_text())]
    described = table(result, "clusters").to_pylist()
    assert len(shown) == sum(len(row["exemplars"][:6] + row["least_typical"][:3]) for row in described)
    pictures = {(index.parent / "clusters" / src).resolve() for src in shown}
    assert pictures == set(index.parent.rglob("*.jpg"))
    assert Image.open(min(pictures)).format == "JPEG"
    assert index.read_text().count("clusters/0001.html#cluster-") >= 2
