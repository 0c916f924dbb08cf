"""A whole run from object storage to object storage."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest

import raycluster
from raycluster.config import StorageConfig
from raycluster.storage import locate

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.mark.timeout(400)
def test_ready_made_embeddings_from_a_bucket_to_a_bucket(s3: StorageConfig) -> None:
    """With a method that is trained, for Ray Train's checkpoints lie there too; pictures in a bucket are in test_inputs.py."""
    root = locate(f"s3://raycluster-test/run-{time.time_ns()}", s3)
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
        "storage": s3.model_dump(),
        "method": {"name": "seic", "epochs": 20},
    }
    result = raycluster.run(config)
    assert result.metrics["acc"] == 1.0
    assert not (root / "out" / "_lock.json").exists()
    again = raycluster.run(config)
    assert {stage["state"] for stage in again.stages.values()} == {"skipped"}
    predicted = raycluster.load_model(result.output, s3).predict(rows)
    assert (
        len({(cluster, label) for cluster, label in zip(predicted.cluster.tolist(), truth.tolist(), strict=True)}) == 4
    )
