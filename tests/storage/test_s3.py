"""Test whole runs from object storage to object storage."""

from __future__ import annotations

import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import raycluster
from raycluster.config import StorageConfig
from raycluster.demo.drawing import draw_dataset
from raycluster.storage.location import Location, locate

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def root(s3: StorageConfig) -> Location:
    """An empty prefix."""
    return locate(f"s3://raycluster-test/run-{time.time_ns()}", s3)


@pytest.mark.timeout(400)
def test_ready_made_embeddings_from_a_bucket_to_a_bucket(root: Location) -> None:
    """The method is trained, because Ray Train's checkpoints lie in the bucket too."""
    method = {"name": "seic", "epochs": 20}
    rng = np.random.default_rng(0)
    centers, truth = rng.normal(size=(4, 16)).astype(np.float32), np.arange(80) % 4
    rows = centers[truth] + 0.2 * rng.normal(size=(80, 16)).astype(np.float32)
    given = {"image_id": [f"image {i}" for i in range(80)], "embedding": list(rows), "label": [str(t) for t in truth]}
    (root / "embeddings.parquet").write_table(pa.table(given))
    (root / "nouns.parquet").write_table(pa.table({"noun": ["a", "b", "c", "d"], "embedding": list(centers)}))
    config = {
        "embeddings": (root / "embeddings.parquet").uri,
        "vocabulary": {"embeddings": (root / "nouns.parquet").uri},
        "output": (root / "out").uri,
        "clusters": 4,
        "storage": root.options.model_dump(),
        "method": method,
    }
    result = raycluster.run(config)
    assert result.metrics["acc"] == 1.0
    assert not (root / "out" / "_lock.json").exists()
    again = raycluster.run(config)
    assert {stage["state"] for stage in again.stages.values()} == {"skipped"}
    predicted = raycluster.load_model(result.output, root.options).predict(rows)
    assert (
        len({(cluster, label) for cluster, label in zip(predicted.cluster.tolist(), truth.tolist(), strict=True)}) == 4
    )


@pytest.mark.torture
@pytest.mark.timeout(400)
def test_pictures_from_a_bucket_are_clustered_and_the_encoder_is_tuned(root: Location, tmp_path: Path) -> None:
    draw_dataset(tmp_path, 32, ("house", "fish"), seed=4)
    for path in tmp_path.glob("*/*.*"):
        (root / "photos" / path.parent.name / path.name).write_bytes(path.read_bytes())
    for file in ("open_clip_config.json", "open_clip_model.safetensors"):
        (root / "clip" / file).write_bytes((files("raycluster.demo") / "clip" / file).read_bytes())
    (root / "nouns.txt").write_bytes(b"house\nfish\ntree\n")
    config = {
        "images": (root / "photos").uri,
        "output": (root / "out").uri,
        "clusters": 2,
        "labels": "folder",
        "encoder": {"model": (root / "clip").uri},
        "vocabulary": {"source": (root / "nouns.txt").uri, "cache": (root / "cache").uri},
        "storage": root.options.model_dump(),
        "resources": {"encoder_actors": 1},
        "finetune": {"enabled": True, "rank": 4, "batch_size": 16, "epochs": 1},
    }
    result = raycluster.run(config)
    assert "reembed" in result.stages, result.warnings
    assert {stage["state"] for stage in raycluster.run(config).stages.values()} == {"skipped"}
    picture = next(path for path in (root / "photos" / "fish").list())
    predicted = raycluster.load_model(result.output, root.options).predict([picture.uri])
    assert predicted.status == ["ok"]
    more = {"model": result.model, "images": picture.parent.uri, "output": (root / "new").uri}
    settings = {key: config[key] for key in ("storage", "resources")}
    assigned = raycluster.assign(**more, **settings)
    assert assigned.metrics["n"] == 16
    assert locate(assigned.tables["drift"], root.options).list(suffix="drift.json")
    assert {stage["state"] for stage in raycluster.assign(**more, **settings).stages.values()} == {"skipped"}
