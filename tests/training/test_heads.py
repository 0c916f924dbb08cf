"""Test that training on Ray gives the same model with one worker or two, and after a worker or the driver was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from ray_workers import checkpoints, worker_killed_after_a_checkpoint

import raycluster
from raycluster.compute.resources import Resources
from raycluster.config import MethodConfig
from raycluster.methods.base import Method
from raycluster.storage.location import locate
from raycluster.training.heads import HeadsJob, train_heads
from raycluster.training.loop import History
from raycluster.training.neighbors import training_data

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

N, DIM, CLUSTERS = 640, 16, 4


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = np.arange(N) % CLUSTERS
    sides = (rng.normal(size=(CLUSTERS, DIM))[truth] + 0.4 * rng.normal(size=(N, DIM)) for _ in range(2))
    images, texts = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides)
    nouns = rng.normal(size=(9, DIM))
    return {
        "row_ids": np.arange(N),
        "images": images.astype(np.float16),
        "counterparts": texts.astype(np.float16),
        "nouns": (nouns / np.linalg.norm(nouns, axis=1, keepdims=True)).astype(np.float32),
    }


def trained(folder: Path, workers: int = 1, **constants: Any) -> tuple[Method, History]:
    config = MethodConfig.model_validate({"name": "dxmc", "batch_size": 32, **constants})
    job = HeadsJob(config, DIM, CLUSTERS, N, seed=3, checkpoint_steps=200)
    cpus = max(2, os.cpu_count() or 2)
    resources = Resources(cpus, cpus, 0, encoder_actors=1, train_workers=workers)
    data = {name: ray.put(array) for name, array in arrays().items()}
    return train_heads(job, data, locate(str(folder)), resources)


def clusters(method: Method) -> torch.Tensor:
    return method.predict(torch.from_numpy(arrays()["images"])).argmax(dim=1)


def test_workers_read_the_arrays_of_shared_memory_themselves() -> None:
    references = {name: ray.put(array) for name, array in arrays().items()}
    data = training_data(references, "cpu")
    assert np.shares_memory(data.images.numpy(), ray.get(references["images"]))
    assert data.counterparts is not None
    assert np.shares_memory(data.counterparts.numpy(), ray.get(references["counterparts"]))


@pytest.mark.torture
@pytest.mark.timeout(400)
def test_two_workers_of_which_one_is_killed_end_with_the_model_of_one(tmp_path: Path) -> None:
    alone, history = trained(tmp_path / "alone", epochs=40)
    assert len(history) == 40
    assert history[-1]["loss"] < history[0]["loss"]
    with worker_killed_after_a_checkpoint(tmp_path / "killed"):
        again, again_history = trained(tmp_path / "killed", workers=2, epochs=40)
    np.testing.assert_allclose([h["loss"] for h in again_history], [h["loss"] for h in history], rtol=1e-3, atol=1e-3)
    assert float((clusters(again) == clusters(alone)).float().mean()) >= 0.99


@pytest.mark.torture
@pytest.mark.timeout(400)
def test_a_killed_driver_resumes_at_the_last_checkpoint(tmp_path: Path) -> None:
    given = arrays()
    ids = [f"image {i:04d}" for i in range(N)]
    pq.write_table(pa.table({"image_id": ids, "embedding": list(given["images"].astype(np.float32))}), tmp_path / "e.parquet")  # fmt: skip
    nouns = {"noun": [f"noun {i}" for i in range(9)], "embedding": list(given["nouns"])}
    pq.write_table(pa.table(nouns), tmp_path / "n.parquet")
    config = {
        "embeddings": str(tmp_path / "e.parquet"),
        "vocabulary": {"embeddings": str(tmp_path / "n.parquet")},
        "clusters": CLUSTERS,
        "method": {"name": "seic", "batch_size": 32, "epochs": 60},
    }
    options = [f"--{key}={json.dumps(value)}" for key, value in config.items() if key in ("embeddings", "clusters")]
    options += [f"--vocabulary.embeddings={tmp_path / 'n.parquet'}", f"--output={tmp_path / 'killed'}"]
    options += [f"--method.{key}={value}" for key, value in config["method"].items()]
    command = [str(Path(sys.executable).parent / "raycluster"), "train", *options]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and driver.poll() is None and not checkpoints(tmp_path / "killed"):
        time.sleep(0.05)
    assert driver.poll() is None, "the training ended before it could be killed"
    driver.kill()
    driver.wait()
    assert not list((tmp_path / "killed").glob("model/*/model.json"))
    before = {path: path.stat().st_mtime_ns for path in checkpoints(tmp_path / "killed")}
    assert before
    resumed = raycluster.run({**config, "output": str(tmp_path / "killed")}, until="train")
    undisturbed = raycluster.run({**config, "output": str(tmp_path / "whole")}, until="train")
    # Files from before the kill were not written again, so the training went on from there.
    assert any(path.exists() and path.stat().st_mtime_ns == time for path, time in before.items())
    models = [raycluster.load_model(result.output).method.state_dict() for result in (resumed, undisturbed)]
    for name, value in models[1].items():
        torch.testing.assert_close(models[0][name], value, rtol=1e-4, atol=1e-4, msg=name)
