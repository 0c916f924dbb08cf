"""Test the whole plan of a cluster with GPUs on a machine without GPUs: Ray counts two that do not exist, and their work runs on the CPU
(:func:`raycluster.compute.resources.own_device`). The tables must equal those of a run without GPUs.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import drawn_run
import pyarrow as pa
import pytest
import ray
import run_commands
import torch
from serving_kit import ServeEndpoint, post

import raycluster
from raycluster.compute.resources import own_device, resolve
from raycluster.config import ResourcesConfig
from raycluster.demo.drawing import draw_dataset
from raycluster.pipeline.run import RunResult

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

TUNING = {"enabled": True, "rank": 8, "learning_rate": 1e-4, "batch_size": 16, "epochs": 1, "train_sample": 48}


@pytest.fixture(scope="module", autouse=True)
def two_gpus(own_ray: Any) -> Iterator[None]:
    """A Ray of its own with four CPUs and two GPUs."""
    with own_ray(num_cpus=4, num_gpus=2):
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 pictures, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    draw_dataset(folder, 96, drawn_run.KINDS, seed=11)
    (folder / "text.jpg").write_text("not a picture")
    return folder


def configuration(photos: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """A configuration whose encoder has fp32, because `auto` is bf16 where there are GPUs, and the tables would differ."""
    output.parent.mkdir(exist_ok=True)
    return drawn_run.configuration(photos, output, **{"method": {"name": "consensus"}, "resources": {}, **changes})


class LeastFree:
    """The fewest GPUs that were free while this context lasted."""

    def __init__(self) -> None:
        self.gpus = 2.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> LeastFree:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.gpus = min(self.gpus, ray.available_resources().get("GPU", 0.0))


WITHOUT = {"use_gpu": False, "encoder_actors": 1}


def both_ways(photos: Path, folder: Path, **changes: Any) -> tuple[RunResult, RunResult, float]:
    """A run with the GPUs, the same run without them, and the fewest GPUs that were free during the first run.

    `resources` are for the run with the GPUs. The other one trains on one worker, which gives the same weights.
    """
    resources = changes.pop("resources", {})
    with LeastFree() as free:
        with_gpus = raycluster.run(configuration(photos, folder / "gpu" / "out", resources=resources, **changes))
    without = configuration(photos, folder / "cpu" / "out", resources=WITHOUT, **changes)
    return with_gpus, raycluster.run(without), free.gpus


@pytest.fixture(scope="module")
def consensus(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, RunResult, float]:
    return both_ways(photos, tmp_path_factory.mktemp("consensus"))


def tables(result: RunResult) -> dict[str, pa.Table]:
    return run_commands.tables(result.as_json())


def same(with_gpus: RunResult, without: RunResult) -> None:
    """Check that both runs did every stage, and that all of their tables are equal."""
    assert list(with_gpus.stages) == list(without.stages)
    assert {entry["state"] for entry in with_gpus.stages.values()} == {"ran"}
    run_commands.compare(tables(with_gpus), tables(without))


def test_a_process_asks_for_its_own_device() -> None:
    assert resolve(ResourcesConfig()).gpus == 2
    assert not torch.cuda.is_available()
    held, device = ray.get(ray.remote(num_gpus=1)(lambda: (ray.get_gpu_ids(), own_device())).remote(), timeout=60)
    assert len(held) == 1
    assert device == "cpu"


def test_pictures_to_consensus(consensus: tuple[RunResult, RunResult, float]) -> None:
    with_gpus, without, free = consensus
    assert free == 0  # two encoders held a GPU each
    same(with_gpus, without)
    # Both runs also warn of the image that is none. Only the run with GPUs has another warning.
    (warning,) = set(with_gpus.warnings) - set(without.warnings)
    assert warning.startswith("Ray counts GPUs on node ")
    assert "PyTorch sees none there: work that reserves them runs on CPUs" in warning


def test_several_encoders_on_a_gpu(photos: Path, tmp_path: Path, consensus: tuple[RunResult, RunResult, float]) -> None:
    with LeastFree() as free:
        config = configuration(photos, tmp_path / "out", resources={"encoder_actors": 4})
        found = raycluster.run(config, until="embed")
    assert free.gpus == 0
    expected = tables(consensus[1])
    run_commands.compare(tables(found), {name: expected[name] for name in ("manifest", "embeddings")})


def test_embeddings_to_dxmc_with_two_train_workers(
    photos: Path, tmp_path: Path, consensus: tuple[RunResult, RunResult, float]
) -> None:
    """The embeddings are those of the earlier runs, in copies of their folders."""
    for run, name in zip(consensus, ("gpu", "cpu"), strict=False):
        shutil.copytree(run.output, tmp_path / name / "out")
    method = {"name": "dxmc", "epochs": 3}
    with_gpus, without, free = both_ways(photos, tmp_path, method=method, resources={"train_workers": 2})
    assert free == 0
    assert with_gpus.stages["embed"]["state"] == "skipped"
    assert with_gpus.stages["train"]["state"] == without.stages["train"]["state"] == "ran"
    run_commands.compare(tables(with_gpus), tables(without))


def test_shards_to_a_tuned_encoder_that_embeds_again(photos: Path, tmp_path: Path) -> None:
    changes = {"shards": {"enabled": True}, "finetune": TUNING, "resources": {"train_workers": 2}}
    with_gpus, without, free = both_ways(photos, tmp_path, **changes)
    assert {"shard", "baseline", "finetune", "reembed", "assign"} <= with_gpus.stages.keys()
    assert free == 0
    same(with_gpus, without)


def test_a_tuned_encoder_from_the_originals(
    photos: Path, tmp_path: Path, consensus: tuple[RunResult, RunResult, float]
) -> None:
    """The result of fine-tuning was compared above. Here it reads the originals, in a copy of a finished run."""
    shutil.copytree(consensus[0].output, tmp_path / "out")
    config = configuration(photos, tmp_path / "out", finetune=TUNING, resources={"train_workers": 1})
    with LeastFree() as free:
        found = raycluster.run(config, until="assign")
    assert free.gpus == 0
    assert [stage for stage, entry in found.stages.items() if entry["state"] == "ran"] == [
        "baseline",
        "finetune",
        "reembed",
        "assign",
    ]
    assert tables(found)["assignments"].num_rows == tables(consensus[0])["assignments"].num_rows


def test_new_pictures(consensus: tuple[RunResult, RunResult, float], tmp_path: Path) -> None:
    new = tmp_path / "new"
    draw_dataset(new, 24, drawn_run.KINDS, seed=12)
    found = [
        raycluster.assign(model=run.output, images=str(new), output=str(tmp_path / name), resources=resources)
        for run, name, resources in (
            (consensus[0], "gpu", {}),
            (consensus[1], "cpu", WITHOUT),
        )
    ]
    assert {entry["state"] for entry in found[0].stages.values()} == {"ran"}
    run_commands.compare(tables(found[0]), tables(found[1]))


@contextmanager
def endpoint(run: RunResult) -> Iterator[ServeEndpoint]:
    # `model.num_gpus` is not given, so a replica takes one GPU where the cluster has any.
    with ServeEndpoint({"run": run.output}) as served:
        yield served


def test_the_endpoint_answers_what_the_table_says(consensus: tuple[RunResult, RunResult, float]) -> None:
    rows = [row for row in tables(consensus[0])["assignments"].to_pylist() if row["status"] == "ok"][:8]
    with LeastFree() as free, endpoint(consensus[0]) as served:
        reply = post(served.url, [Path(row["uri"]) for row in rows])
        assert served.model()["device"] == "cpu"
    assert free.gpus <= 1  # the replica holds one
    assert reply.status_code == 200, reply.text
    assert [item["cluster"] for item in reply.json()["items"]] == [row["cluster"] for row in rows]
