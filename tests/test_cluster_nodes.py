"""What nodes must have in common, asked of real nodes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from ray_nodes import RAY, ROOT, Nodes, cluster_of, wait_for

from raycluster import distributed, nodes
from raycluster.config import EncoderConfig, ResourcesConfig, RunConfig
from raycluster.demo.drawing import draw_dataset
from raycluster.encoder.clip import resolve_encoder
from raycluster.errors import ConfigError, RayclusterError
from raycluster.storage import locate


def test_a_difference_is_named_with_node_and_both_versions() -> None:
    here = {"python": "3.11.7", "torch": "2.15.0"}
    assert nodes.differences(here, {"10.0.0.2": here}) == []
    assert nodes.differences(here, {"10.0.0.2": {**here, "torch": "absent"}}) == [
        "torch is absent on node 10.0.0.2 and 2.15.0 here"
    ]
    assert nodes.some(["a", "b", "c", "d", "e"]) == "a; b; c; and 2 more"


def test_a_cluster_where_nothing_listens_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(RayclusterError, match=r"RAY_ADDRESS: nothing answers at 127\.0\.0\.1:9 .*; give the address"):
        distributed.connect()
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("said", "kind", "means"),
    [
        ("Version mismatch: The cluster was started with: Ray: 2.59.0", ConfigError, "give all nodes one image"),
        ("RPC error: InvalidAuthToken: …", ConfigError, "wants its token; put it into"),
        ("something else", RayclusterError, "could not be joined (something else); see `ray status`"),
    ],
)
def test_why_a_cluster_could_not_be_joined(said: str, kind: type[Exception], means: str) -> None:
    error = distributed._not_joined("10.0.0.1:6379", RuntimeError(said))
    assert type(error) is kind
    assert means in str(error)


def test_a_driver_that_holds_cores_leaves_room_for_decoding() -> None:
    # Two cores, half of one held by the driver of a submitted job, and any number of actors.
    for cpus, actors in ((1.5, 1), (1.5, 2), (1.0, 1), (15.0, 15), (15.0, 16)):
        found = distributed.Resources(cpus, 2 if cpus < 2 else 16, 0.0, actors, 1)
        assert actors * found.reserved_cpus(actors) + found.task_cpus <= cpus


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
class TestOnThisMachine:
    def test_the_only_node_has_what_this_process_has(self) -> None:
        nodes.check_versions()
        assert nodes.others() == []
        assert set(nodes.versions_question()()) == {"python", "ray", "torch", "raycluster"}

    def test_a_node_that_does_not_answer_is_named(self) -> None:
        (here,) = nodes.alive()
        with pytest.raises(RayclusterError, match=f"no answer from node {here.address} in 1 s; look at its logs"):
            nodes.ask([here], lambda: time.sleep(5), wait=1.0)

    def test_a_node_that_went_away_is_left_out(self) -> None:
        (here,) = nodes.alive()
        gone = nodes.Node("00" * 28, "10.0.0.9", 4, 0)
        assert nodes.ask([here, gone], lambda: 7, wait=30.0) == {here: 7}

    def test_files_and_folders_that_a_node_sees_otherwise(self, tmp_path: Path) -> None:
        (tmp_path / "photo.jpg").write_bytes(b"picture")
        paths = [str(tmp_path), str(tmp_path / "photo.jpg")]
        nodes.check_seen("images", nodes.alive(), paths, paths[0])

    def test_nodes_that_do_not_come_are_an_error_and_nothing_stays_reserved(self) -> None:
        wanted = ResourcesConfig(use_gpu=True, encoder_actors=2, wait_seconds=1)
        with pytest.raises(ConfigError, match=r"in 1 s the cluster has grown to 0 of 2 GPUs; see `ray status`"):
            distributed.resolve(wanted)
        cpus = int(ray.cluster_resources()["CPU"])
        assert distributed.resolve(ResourcesConfig(encoder_actors=cpus, wait_seconds=30)).encoder_actors == cpus


def test_which_weights_lie_on_a_disk(shared: Path) -> None:
    assert nodes.local_weights(resolve_encoder(EncoderConfig(model="builtin"), use_gpu=False)) is None
    folder = f"local-dir:{shared / 'models' / 'photo-clip'}"
    assert nodes.local_weights(resolve_encoder(EncoderConfig(model=folder), use_gpu=False)) == "encoder.model"


def test_local_paths_of_addresses() -> None:
    assert nodes.local_path("s3://bucket/key") is None
    assert nodes.local_path("/data/a.jpg") == nodes.local_path("file:///data/a.jpg") == "/data/a.jpg"


# Two nodes that differ: one with other code, one that does not see a folder of the driver's.


def command(cluster: Nodes, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "raycluster.cli", *words],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment,
        check=False,
    )


@pytest.mark.torture
@pytest.mark.timeout(400)
def test_a_node_with_other_code_is_refused(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "raycluster", tmp_path / "raycluster")
    with (tmp_path / "raycluster" / "assign.py").open("a") as file:
        file.write("# another version\n")
    with cluster_of(1) as (cluster, _):
        assert command(cluster, "doctor").returncode == 0
        cluster.environment["PYTHONPATH"] = str(tmp_path)
        cluster.add(num_cpus=1)
        words = ("--images", str(tmp_path), "--output", str(tmp_path / "out"), "--clusters", "2")
        done = command(cluster, "run", *words, "--encoder.model", "builtin")
    assert done.returncode == 2, done.stderr
    assert "raycluster is code" in done.stderr
    assert "submit with `--working-dir .`" in done.stderr


@pytest.mark.torture
@pytest.mark.timeout(400)
def test_a_folder_that_another_node_does_not_see_is_refused(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "photos", 12, ("fish", "car"), seed=3)
    shutil.copytree(ROOT / "raycluster" / "demo" / "clip", tmp_path / "clip")
    run = (
        "run",
        "--clusters",
        "2",
        "--images",
        str(tmp_path / "photos"),
        "--encoder.model",
        "builtin",
        "--method.name",
        "kmeans",
    )
    with cluster_of(1) as (cluster, _):
        # A machine of its own as far as `tmp_path` goes.
        hidden = f"mount -t tmpfs none {tmp_path} && exec {RAY} start --address={cluster.address} --num-cpus=1 --block"
        folder = cluster.own_folder()
        other = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", f"{hidden} --temp-dir={folder}"],
            env={**os.environ, **cluster.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda: len(cluster.cluster.list_all_nodes()) == 3, 60)
            blind = command(cluster, *run, "--output", str(tmp_path / "out"))
            assert blind.returncode == 2
            assert f"output: {tmp_path}/out is on this machine's disk" in blind.stderr
            # The folder of the test above it is there on both.
            seen = tmp_path.parent / f"{tmp_path.name}-out"
            blind = command(cluster, *run, "--output", str(seen))
            assert blind.returncode == 2
            assert f"images: {tmp_path}/photos" in blind.stderr
            assert "on several nodes use s3://" in blind.stderr
            draw_dataset(seen.parent / f"{tmp_path.name}-photos", 12, ("fish", "car"), seed=3)
            elsewhere = [*run]
            elsewhere[elsewhere.index(str(tmp_path / "photos"))] = str(seen.parent / f"{tmp_path.name}-photos")
            elsewhere[elsewhere.index("builtin")] = f"local-dir:{tmp_path / 'clip'}"
            blind = command(cluster, *elsewhere, "--output", str(seen))
            assert blind.returncode == 2
            assert "encoder.model:" in blind.stderr
            assert "put the same files at the same path everywhere" in blind.stderr
            elsewhere[elsewhere.index(f"local-dir:{tmp_path / 'clip'}")] = "builtin"
            well = command(cluster, *elsewhere, "--output", str(seen))
            assert well.returncode == 0, well.stderr
        finally:
            other.terminate()
            other.wait(30)


def test_places_need_no_look_on_one_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nodes, "others", list)
    config = RunConfig(images=str(tmp_path), output=str(tmp_path / "out"), clusters=2)
    nodes.check_places(config, locate(config.output), pa.chunked_array([["/nowhere/a.jpg"]]), None)
