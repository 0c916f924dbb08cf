"""Test that a run which reads its pictures from shards gives the same rows as one on the originals, whatever happens in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from listing_kit import manifest_of

import raycluster
from raycluster.cli import main
from raycluster.compute.resources import Resources
from raycluster.config import EncoderConfig, StorageConfig
from raycluster.demo.drawing import draw_picture
from raycluster.errors import ConfigError, DataQualityError
from raycluster.images.pictures import pictures
from raycluster.images.shard_pictures import shard_rows
from raycluster.images.shards import GROUP_ROWS, GroupReader, ShardJob, find_rows, group_ids, shard, write_groups
from raycluster.pipeline.run import RunResult
from raycluster.storage.location import Location, locate
from raycluster.tables.files import part_files
from raycluster.tables.names import part_name
from raycluster.tables.rows import row_ids, unit
from raycluster.tables.schemas import SHARDS

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

KINDS = ("house", "fish", "tree", "star")
BAD = {"empty.jpg": "empty", "text.jpg": "undecodable", "gone.jpg": "missing"}


def draw(folder: Path, count: int, first: int = 0) -> None:
    """Draw pictures that are large enough to be made smaller for the built-in encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        kind = KINDS[number % len(KINDS)]
        draw_picture(kind, number, size=200 + number % 50).save(folder / f"{number:03d}-{kind}.jpg", quality=92)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    draw(folder, 48)
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("not a picture")
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    return folder


def configuration(photos: Path, output: Path, **shards: Any) -> dict[str, Any]:
    nouns = output.parent / "nouns.txt"
    nouns.write_text("\n".join((*KINDS, "car", "cup", "bird", "flower")))
    return {
        "images": str(photos),
        "output": str(output),
        "clusters": 4,
        "encoder": {"model": "builtin"},
        "vocabulary": {"source": str(nouns), "prompts": ["a picture of a {}"], "cache": str(output.parent / "cache")},
        "method": {"name": "kmeans"},
        "max_failed_fraction": 0.1,
        "resources": {"encoder_actors": 1},
        "shards": shards,
    }


def table(result: RunResult, name: str) -> pa.Table:
    return pq.read_table(result.tables[name]).sort_by("row_id")


def states(result: RunResult) -> dict[str, str]:
    return {stage: entry["state"] for stage, entry in result.stages.items()}


@pytest.fixture(scope="module")
def without(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return raycluster.run(configuration(photos, tmp_path_factory.mktemp("without") / "out"), until="embed")


@pytest.fixture(scope="module")
def sharded(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], RunResult]:
    """A run whose originals were spoiled as soon as the shards were there."""
    copy = tmp_path_factory.mktemp("spoiled") / "photos"
    shutil.copytree(photos, copy, symlinks=True)
    config = configuration(copy, tmp_path_factory.mktemp("sharded") / "out", enabled=True)
    first = raycluster.run(config, until="shard", command="shard")
    assert list(first.stages) == ["manifest", "shard"]
    for file in copy.glob("*-*.jpg"):
        info = file.stat()
        file.write_bytes(b"x" * info.st_size)
        os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    return config, raycluster.run(config)


def test_the_table_holds_every_image_smaller_or_its_fate(
    sharded: tuple[dict[str, Any], RunResult], photos: Path
) -> None:
    _, result = sharded
    assert states(result)["shard"] == "skipped"
    stored = table(result, "shards")
    assert stored.schema.remove_metadata() == SHARDS
    assert stored["row_id"].equals(table(result, "manifest")["row_id"])
    rows = {row["image_id"]: row for row in stored.to_pylist()}
    assert {name: rows[name]["status"] for name in BAD} == BAD
    good = [row for name, row in rows.items() if name not in BAD]
    assert all(row["width"] == row["height"] >= 200 for row in good)
    given = sum(path.stat().st_size for path in photos.glob("*-*.jpg"))
    assert sum(len(row["image"]) for row in good) < 0.6 * given


def test_embeddings_are_those_of_the_originals(sharded: tuple[dict[str, Any], RunResult], without: RunResult) -> None:
    ours, theirs = table(sharded[1], "embeddings"), table(without, "embeddings")
    for name in ("row_id", "image_id", "status", "error", "width", "height", "content"):
        assert ours[name].equals(theirs[name]), name
    good = np.flatnonzero(np.array(ours["status"].to_pylist()) == "ok")
    vectors = [unit(np.array(one["embedding"].take(good).to_pylist(), np.float32)) for one in (ours, theirs)]
    assert (vectors[0] * vectors[1]).sum(axis=1).mean() > 0.999


def test_originals_fall_into_the_clusters_of_their_shards(
    sharded: tuple[dict[str, Any], RunResult], without: RunResult
) -> None:
    config, result = sharded
    good = table(without, "embeddings").filter(pa.compute.field("status") == "ok")
    predicted = raycluster.load_model(config["output"]).predict(np.array(good["embedding"].to_pylist(), np.float16))
    assigned = np.array(table(result, "assignments")["cluster"].drop_null())
    assert (predicted.cluster == assigned).mean() >= 0.95


def test_the_report_shows_what_the_shards_hold(sharded: tuple[dict[str, Any], RunResult]) -> None:
    _, result = sharded
    # The originals are spoiled, so these pictures come from the shards.
    assert Path(result.report or "").read_text().count("data:image/jpeg") > 30
    assert result.warnings == ["3 of 51 images could not be read: empty 1, missing 1, undecodable 1"]


def test_a_second_run_a_dry_run_and_status_show_the_stage(
    sharded: tuple[dict[str, Any], RunResult], capfd: pytest.CaptureFixture[str]
) -> None:
    config, _ = sharded
    assert set(states(raycluster.run(config)).values()) == {"skipped"}
    other = raycluster.run({**config, "shards": {"enabled": True, "size": 100}}, dry_run=True)
    assert states(other)["shard"] == states(other)["embed"] == "would run"
    assert other.stages["shard"]["reason"] == "changed: size"
    assert main(["status", config["output"]]) == 0
    status = json.loads(capfd.readouterr().out)
    assert status["stages"]["shard"]["failed"] == {"empty": 1, "missing": 1, "undecodable": 1}
    assert status["tables"]["shard"].startswith(config["output"] + "/shards/")


def test_added_images_alone_are_stored_and_another_size_is_another_folder(tmp_path: Path) -> None:
    draw(tmp_path / "photos", 20)
    config = configuration(tmp_path / "photos", tmp_path / "out", enabled=True)
    first = raycluster.run(config, until="shard")
    before = {path: path.stat().st_mtime_ns for path in Path(first.tables["shards"]).iterdir()}
    draw(tmp_path / "photos", 4, first=500)
    second = raycluster.run(config, until="embed")
    assert second.tables["shards"] == first.tables["shards"]
    after = {path: path.stat().st_mtime_ns for path in Path(second.tables["shards"]).iterdir()}
    assert {path: after[path] for path in before} == before
    (new,) = set(after) - set(before)
    assert [row["image_id"][:2] for row in pq.read_table(new).to_pylist()] == ["50"] * 4
    assert len(table(second, "embeddings")) == 24
    larger = raycluster.run({**config, "shards": {"enabled": True, "size": 100}}, until="shard")
    assert larger.tables["shards"] != first.tables["shards"]
    assert len(table(larger, "shards")) == 24


def test_too_many_failures_stop_the_run_before_it_embeds(photos: Path, tmp_path: Path) -> None:
    config = {**configuration(photos, tmp_path / "out", enabled=True), "max_failed_fraction": 0.01}
    for _ in range(2):
        with pytest.raises(DataQualityError, match=r"of 51 images .* could not be read"):
            raycluster.run(config)
    assert not (tmp_path / "out" / "embeddings").exists()


def test_what_cannot_work_is_refused(photos: Path, tmp_path: Path) -> None:
    config = configuration(photos, tmp_path / "out", enabled=True, size=47)
    with pytest.raises(ConfigError, match=r"shards\.size: 47 pixels, but the encoder takes 48; give 48 or more"):
        raycluster.run(config)
    with pytest.raises(ConfigError, match=r"shards\.enabled is false"):
        raycluster.run({**config, "shards": {}}, until="shard")
    given = pa.table({"image_id": list("abcd"), "embedding": [[1.0, 0.0], [0.0, 1.0]] * 2})
    pq.write_table(given, tmp_path / "e.parquet")
    ready = {"embeddings": str(tmp_path / "e.parquet"), "clusters": 2, "method": {"name": "kmeans"}}
    with pytest.raises(ConfigError, match=r"shards\.enabled: shards hold pictures"):
        raycluster.run({**ready, "output": str(tmp_path / "out"), "shards": {"enabled": True}})


@pytest.fixture
def manifest(photos: Path, tmp_path: Path) -> Location:
    """A manifest of 400 rows, in which each picture occurs about eight times."""
    listing = manifest_of((photos,))
    rows = pa.concat_tables([listing] * 8).slice(0, 400)
    rows = rows.set_column(0, "row_id", pa.array(np.arange(400)))
    file = locate(str(tmp_path / "manifest" / "part-000000000000.parquet"))
    file.write_table(rows, 100)
    return file


def test_the_stage_goes_on_where_it_was_and_pictures_are_found_again(manifest: Location, tmp_path: Path) -> None:
    place = locate(str(tmp_path / "shards"))
    job = ShardJob(56, EncoderConfig(model="builtin"), StorageConfig(), place)
    one_core = Resources(1, 1, 0, encoder_actors=1, train_workers=1)
    done = np.arange(0, 400, 3)
    left = np.setdiff1d(np.arange(400), done)
    counts = [count for wanted in (done, left) for count in shard(job, [manifest], wanted, one_core)]
    assert sum(count.total() for count in counts) == 400
    files = part_files(place)
    ids = row_ids(files)
    assert np.array_equal(np.sort(ids), np.arange(400))
    sizes = [pq.ParquetFile(file.path).metadata.row_group(0).num_rows for file in files]
    assert max(sizes) <= GROUP_ROWS

    wanted = np.arange(0, 400, 2)
    where = find_rows(files, wanted)
    assert where["row_id"].to_pylist() == wanted.tolist()
    groups = group_ids(where)
    reader = GroupReader(StorageConfig(), capacity=3)
    order = np.random.default_rng(0).permutation(len(where))
    mixed = where.take(pa.array(order)).set_column(1, "uri", where["uri"].cast(pa.string()).take(pa.array(order)))
    found = reader(mixed)
    assert found.column_names == ["row_id", "status", "error", "image"]
    assert reader.reads == len(np.unique(groups))
    assert len(reader.kept) == 3
    expected = {row["row_id"]: row for file in files for row in pq.read_table(file.path).to_pylist()}
    for row in found.to_pylist():
        assert row == {name: expected[row["row_id"]][name] for name in found.column_names}


@pytest.mark.torture
@pytest.mark.timeout(900)
def test_killed_while_it_writes_shards_it_goes_on(tmp_path: Path) -> None:
    """The whole process group is killed three times. Parts that were there stay as they are."""
    draw(tmp_path / "seed", 40)
    files, folder = sorted((tmp_path / "seed").iterdir()), tmp_path / "photos"
    folder.mkdir()
    for index in range(20_000):
        (folder / f"{index:05d}.jpg").symlink_to(files[index % 40])
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(configuration(folder, tmp_path / "out", enabled=True)))
    command = [str(Path(sys.executable).parent / "raycluster"), "shard", "--config", str(config)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}

    def there() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").glob("*/part-*.parquet")}

    kept: dict[Path, int] = {}
    for _ in range(3):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        deadline = time.monotonic() + 200
        while len(there()) <= len(kept):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = there()
        assert {path: now[path] for path in kept} == kept
        kept = now
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert {path: there()[path] for path in kept} == kept
    result = json.loads(done.stdout)
    ids = row_ids(part_files(locate(result["tables"]["shards"])))
    assert np.array_equal(np.sort(ids), np.arange(20_000))
    assert not list((tmp_path / "out" / "shards").glob("*/*.tmp"))


def test_in_a_bucket_a_part_that_was_broken_off_leaves_nothing(photos: Path, s3: StorageConfig) -> None:
    root = locate(f"s3://raycluster-test/shards-{time.time_ns()}", s3)
    for file in sorted(photos.glob("*-*.jpg")):
        (root / "photos" / file.name).write_bytes(file.read_bytes())
    listing = manifest_of(((root / "photos").uri,), s3)
    (root / "manifest" / "part-000000000000.parquet").write_table(listing)
    job = ShardJob(64, EncoderConfig(model="builtin"), s3, root / "shards")

    def broken() -> Iterator[pa.Table]:
        rows = listing.slice(0, 10)
        yield shard_rows(rows, pictures(rows, s3, 2**20), 64, 10**8)
        raise OSError("the network is gone")

    with pytest.raises(OSError, match="the network is gone"):
        write_groups(job.folder / part_name(np.arange(48)), broken())
    assert job.folder.list() == []
    resources = Resources(1, 1, 0, encoder_actors=1, train_workers=1)
    counts = list(shard(job, part_files(root / "manifest"), np.arange(48), resources))
    assert sum(count["ok"] for count in counts) == 48
    assert np.array_equal(np.sort(row_ids(part_files(job.folder))), np.arange(48))
    where = find_rows(part_files(job.folder), np.arange(48))
    where = where.set_column(1, "uri", where["uri"].cast(pa.string()))
    assert GroupReader(s3, capacity=1)(where)["status"].to_pylist() == ["ok"] * 48
