"""Test runs on a cluster of several nodes, submitted as a user submits them, with all files in object storage.

The tests need a real S3 endpoint: RAYCLUSTER_TEST_S3 holds its URL, and the AWS variables hold the keys.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ray_nodes import IMPATIENT, cluster_of, finished, wait_until

from raycluster.config import StorageConfig
from raycluster.demo.drawing import draw_dataset
from raycluster.storage.location import Location, locate, read_table

S3 = os.environ.get("RAYCLUSTER_TEST_S3")
pytestmark = pytest.mark.skipif(S3 is None, reason="RAYCLUSTER_TEST_S3 names no S3 endpoint")

KINDS = ("house", "fish", "tree", "star")


def bucket() -> Location:
    """A fresh prefix of the test bucket."""
    from pyarrow import fs

    fs.S3FileSystem(endpoint_override=S3, region="us-east-1", allow_bucket_creation=True).create_dir("raycluster-test")
    storage = StorageConfig(endpoint_url=S3, region="us-east-1")
    return locate(f"s3://raycluster-test/nodes-{time.time_ns()}", storage)


def environment() -> dict[str, str]:
    assert S3 is not None
    return {
        "AWS_ENDPOINT_URL": S3,
        "AWS_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        **IMPATIENT,
    }


def upload(root: Location, pictures: int, scratch: Path, **changes: Any) -> str:
    """Put drawn pictures, a list of nouns and a configuration into the bucket; return the address of the configuration."""
    draw_dataset(scratch, pictures, KINDS, seed=21)
    files = [path for path in scratch.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(8) as pool:
        keys = [root / "photos" / path.relative_to(scratch).as_posix() for path in files]
        list(pool.map(lambda pair: pair[0].write_bytes(pair[1].read_bytes()), zip(keys, files, strict=True)))
    (root / "nouns.txt").write_bytes("\n".join((*KINDS, "car", "cup", "bird", "flower")).encode())
    config = {
        "images": (root / "photos").uri,
        "output": (root / "out").uri,
        "clusters": len(KINDS),
        "labels": "folder",
        "encoder": {"model": "builtin"},
        "vocabulary": {"source": (root / "nouns.txt").uri, "cache": (root / "cache").uri},
        **changes,
    }
    (root / "run.yaml").write_bytes(yaml.safe_dump(config).encode())
    return (root / "run.yaml").uri


def final_line(output: str) -> dict[str, Any]:
    return json.loads(next(line for line in output.splitlines() if line.startswith("{")))


def check(root: Location, pictures: int) -> np.ndarray:
    """Check that every table has each picture once and that all are assigned; return the clusters by row id."""
    result = (root / "out" / "run.json").read_json()["result"]
    for name in ("manifest", "embeddings", "assignments"):
        table = read_table(locate(result["tables"][name], root.options).list(".parquet"))
        np.testing.assert_array_equal(np.sort(table["row_id"].to_numpy()), np.arange(pictures), err_msg=name)
    assigned = table.sort_by("row_id")
    assert set(assigned["status"].to_pylist()) == {"ok"}
    assert result["metrics"]["acc"] > 0.5
    return assigned["cluster"].to_numpy()


@pytest.mark.torture
@pytest.mark.timeout(500)
def test_a_job_on_two_nodes(tmp_path: Path) -> None:
    root = bucket()
    config = upload(root, 64, tmp_path, method={"name": "kmeans"})
    with cluster_of(2, 1, environment=environment()) as (nodes, _):
        looked = finished(nodes.submit(sys.executable, "jobs/doctor.py", "--config", config), 200)
        assert "succeeded" in looked[1]
        checks = {check["name"]: check["state"] for check in final_line(looked[1])["checks"]}
        assert checks["nodes' storage"] == "ok"
        assert set(checks.values()) == {"ok"}
        # The driver takes half a core of a worker node, because the head computes nothing.
        job = nodes.submit(sys.executable, "jobs/run.py", "--config", config, options=("--entrypoint-num-cpus", "0.5"))
        code, output = finished(job, 400)
    assert code == 0, output
    check(root, 64)


@pytest.mark.torture
@pytest.mark.timeout(1200)
def test_a_node_dies_while_it_embeds_and_one_while_it_trains(tmp_path: Path) -> None:
    root, pictures = bucket(), 800
    method = {"name": "seic", "epochs": 150, "batch_size": 64}
    # Three workers with one core each need both nodes.
    config = upload(root, pictures, tmp_path, method=method, resources={"train_workers": 3})
    out = root / "out"
    with cluster_of(2, 2, environment=environment()) as (nodes, (first, second)):
        # The driver runs on the head, which is not killed here: a cluster dies with its head.
        job = nodes.submit(sys.executable, "jobs/run.py", "--config", config)
        wait_until(lambda: (out / "embeddings").list(".parquet", recursive=True), job, 300)
        nodes.kill(first)
        assert not (out / "_stages" / "embed.json").exists()
        nodes.add(num_cpus=2)  # as an autoscaler would
        wait_until(lambda: (out / "training").list("state.safetensors", recursive=True), job, 300)
        nodes.kill(second)
        assert not (out / "_stages" / "train.json").exists()
        nodes.add(num_cpus=2)
        code, output = finished(job, 500)
    assert code == 0, output
    check(root, pictures)
    trained = (out / "_stages" / "train.json").read_json()
    assert len(trained["facts"]["training"]["history"]) == 150


@pytest.mark.torture
@pytest.mark.timeout(900)
def test_the_drivers_node_dies_and_the_job_is_submitted_again(tmp_path: Path) -> None:
    root, pictures = bucket(), 400
    config = upload(root, pictures, tmp_path, method={"name": "kmeans"})
    command = (sys.executable, "jobs/run.py", "--config", config)
    out = root / "out"
    with cluster_of(2, environment=environment()) as (nodes, (only,)):
        job = nodes.submit(*command, options=("--entrypoint-num-cpus", "0.5"))
        kept = wait_until(lambda: (out / "embeddings").list(".parquet", recursive=True), job, 300)
        before = {file: modified(file) for file in kept}
        nodes.kill(only)
        nodes.add(num_cpus=2)
        # When the node of the driver dies, `ray job submit` loses the log, says that the job is running, and exits with 0.
        finished(job, 200)
        code, output = finished(nodes.submit(*command, options=("--entrypoint-num-cpus", "0.5")), 300)
    assert code == 0, output
    check(root, pictures)
    assert {file: modified(file) for file in kept} == before


def modified(file: Location) -> Any:
    return file.filesystem.get_file_info(file.path).mtime
