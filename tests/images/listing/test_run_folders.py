"""Test that run folders below the input folder are not read, and that ready-made embeddings may begin with nulls."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raycluster
from raycluster.config import StorageConfig
from raycluster.demo.drawing import draw_dataset
from raycluster.encoder.ready_made import find_files
from raycluster.errors import ConfigError
from raycluster.images.listing.manifest import list_images
from raycluster.pipeline.run import RunResult
from raycluster.storage.location import Location, locate

KMEANS = {"clusters": 2, "method": {"name": "kmeans"}}
USES_RAY = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def ready_made(first: int, n: int = 20) -> pa.Table:
    """Embeddings around two centers."""
    vectors = np.eye(2, 8)[np.arange(n) % 2] + 0.1 * np.random.default_rng(first).normal(size=(n, 8))
    return pa.table({"image_id": [f"photo {first + i}" for i in range(n)], "embedding": list(vectors)})


def put(place: Location, *names: str) -> None:
    for name in names:
        (place / name).write_bytes(name.encode())


def statuses(result: RunResult, storage: StorageConfig | None = None) -> dict[str, int]:
    place = locate(result.tables["assignments"], storage)
    table = pq.read_table(place.path, filesystem=place.filesystem)
    return {row["values"]: row["counts"] for row in table["status"].value_counts().to_pylist()}


@pytest.fixture(params=["disk", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder."""
    if request.param == "disk":
        return locate(str(tmp_path))
    return locate(f"s3://raycluster-test/among-{time.time_ns()}", request.getfixturevalue("s3"))


def test_pictures_in_the_run_folder_are_no_input(root: Location) -> None:
    output = root / "photos" / "run"
    put(root / "photos", "a.jpg", "runs/b.jpg", "run.jpg", "note.txt")
    put(output, "c.jpg", "deep/d.jpg", "_stages/plan.json", "report/index.html")

    def found(*sources: Location, output: Location | None = output) -> tuple[list[str], int]:
        listing = list_images(tuple(each.uri for each in sources), root.options, None, output=output)
        return listing.rows.read()["image_id"].to_pylist(), listing.other_files

    assert found(root / "photos") == (["a.jpg", "run.jpg", "runs/b.jpg"], 1)
    assert found(root)[0] == ["photos/a.jpg", "photos/run.jpg", "photos/runs/b.jpg"]
    assert found(root / "photos", output=root / "photos" / "absent")[1] == 3
    # A place in the run folder that is named as the source is read. A run may also write into the folder of the pictures.
    assert found(output / "deep")[0] == ["d.jpg"]
    assert found(root / "photos", output=root / "photos")[1] == 3


def test_a_link_into_the_run_folder_is_no_way_in(tmp_path: Path) -> None:
    output = tmp_path / "elsewhere" / "run"
    put(locate(str(output)), "c.jpg")
    put(locate(str(tmp_path / "photos")), "a.jpg")
    (tmp_path / "photos" / "latest").symlink_to(output)
    listing = list_images((str(tmp_path / "photos"),), StorageConfig(), None, output=locate(str(output)))
    assert listing.rows.read()["image_id"].to_pylist() == ["a.jpg"]


def test_a_glob_does_not_reach_into_the_run_folder(root: Location) -> None:
    """The run's own manifest has a column `uri`, so it looks like a list of pictures."""
    for name in ("lists/a.parquet", "run/manifest.parquet", "run/manifest/part-0.parquet"):
        (root / name).write_table(pa.table({"uri": [f"/{name}.jpg"]}))

    def found(pattern: str) -> list[str]:
        pattern = f"{root.uri}/{pattern}"
        return list_images((pattern,), root.options, None, output=root / "run").rows.read()["uri"].to_pylist()

    assert found("*/*.parquet") == ["/lists/a.parquet.jpg"]
    assert found("run/m*.parquet") == ["/run/manifest.parquet.jpg"]
    with pytest.raises(ConfigError, match="no file matches"):
        found("*/manifest/*.parquet")


def test_run_folders_are_no_embeddings(root: Location) -> None:
    for name in ("a.parquet", "more/b.parquet", "run/manifest/part-0.parquet", "old/manifest/part-0.parquet"):
        (root / name).write_table(ready_made(0))
    put(root / "old" / "_stages", "plan.json")

    def found(source: Location, output: str = "run") -> list[str]:
        return [
            file.uri.removeprefix(f"{root.uri}/") for file in find_files((source.uri,), root.options, root / output)
        ]

    assert found(root) == ["a.parquet", "more/b.parquet"]
    assert found(root / "old" / "manifest") == ["old/manifest/part-0.parquet"]
    assert found(root / "more", "more/run") == ["more/b.parquet"]
    with pytest.raises(ConfigError, match="no Parquet file is there"):
        found(root / "run" / "absent")
    with pytest.raises(ConfigError, match=r"output: .* is the folder of the embeddings"):
        found(root / "more", "more")


class TestRuns:
    pytestmark = USES_RAY

    def test_runs_inside_the_folder_of_embeddings(self, root: Location) -> None:
        feats, storage = root / "feats", root.options
        (feats / "a.parquet").write_table(ready_made(0))
        given = {"embeddings": feats.uri, "storage": storage.model_dump(exclude_none=True), **KMEANS}
        for name in ("clusters2", "again"):
            for state in ("ran", "skipped"):
                result = raycluster.run({**given, "output": (feats / name).uri}, until="assign")
                assert {entry["state"] for entry in result.stages.values()} == {state}
                assert statuses(result, storage) == {"ok": 20}
        (feats / "b.parquet").write_table(ready_made(20))
        grown = raycluster.run({**given, "output": (feats / "clusters2").uri}, until="assign")
        assert statuses(grown, storage) == {"ok": 40}
        assigned = raycluster.assign(
            model=grown.output, embeddings=feats.uri, output=(feats / "new").uri, storage=given["storage"]
        )
        assert statuses(assigned, storage) == {"ok": 40}

    @pytest.mark.slow
    def test_a_run_inside_the_folder_of_pictures(self, tmp_path: Path) -> None:
        draw_dataset(tmp_path / "photos", 12, ("fish", "car"), seed=3)
        given: dict[str, Any] = {"images": str(tmp_path / "photos"), "encoder": {"model": "builtin"}, **KMEANS}
        given["resources"] = {"encoder_actors": 1}
        for state in ("ran", "skipped"):
            result = raycluster.run({**given, "output": str(tmp_path / "photos" / "out")}, until="assign")
            assert {entry["state"] for entry in result.stages.values()} == {state}
            assert statuses(result) == {"ok": 12}

    def test_files_that_begin_with_nulls(self, tmp_path: Path) -> None:
        feats = tmp_path / "feats"
        feats.mkdir()
        ids = [f"null {i}" for i in range(10)]
        nulls = pa.nulls(10, pa.list_(pa.float32()))
        pq.write_table(pa.table({"image_id": ids, "embedding": nulls}), feats / "a.parquet")
        # A writer makes such a column if it does not know the type of the nulls.
        pq.write_table(pa.table({"image_id": ["x", "y"], "embedding": pa.nulls(2)}), feats / "b.parquet")
        pq.write_table(ready_made(0), feats / "c.parquet")
        given = {"embeddings": str(feats), "output": str(tmp_path / "out"), "max_failed_fraction": 0.5, **KMEANS}
        result = raycluster.run(given, until="assign")
        assert statuses(result) == {"failed": 12, "ok": 20}
        # Another file with nulls is added later, and its name sorts before all others.
        pq.write_table(pa.table({"image_id": ["z"], "embedding": pa.nulls(1)}), feats / "0.parquet")
        assert statuses(raycluster.run(given, until="assign")) == {"failed": 13, "ok": 20}

    def test_nothing_but_nulls_is_an_error_in_words(self, tmp_path: Path) -> None:
        for embedding in (pa.nulls(3), pa.nulls(3, pa.list_(pa.float32())), [[], [], []]):
            column = embedding if isinstance(embedding, pa.Array) else pa.array(embedding, pa.list_(pa.float32()))
            pq.write_table(pa.table({"image_id": ["a", "b", "c"], "embedding": column}), tmp_path / "a.parquet")
            given = {"embeddings": str(tmp_path / "a.parquet"), "output": str(tmp_path / "out"), **KMEANS}
            with pytest.raises(ConfigError, match=r"embeddings: .*a\.parquet.* has an embedding"):
                raycluster.run(given, until="embed")
