"""Test the checks of what all nodes must have in common: versions, code, files and folders."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import run_commands
from ray_nodes import IMPATIENT, ROOT, arguments, cluster_of, command, environment, wait_until

from raycluster.compute import connect, node_checks, nodes
from raycluster.compute.resources import Resources, resolve
from raycluster.config import EncoderConfig, ResourcesConfig, RunConfig
from raycluster.demo.drawing import draw_dataset
from raycluster.encoder.clip import TunedTower, resolve_encoder
from raycluster.errors import ConfigError, RayclusterError
from raycluster.pipeline import cluster_checks
from raycluster.storage.location import locate


def test_a_difference_is_named_with_node_and_both_versions() -> None:
    here = {"python": "3.11.7", "torch": "2.15.0"}
    # Two nodes on one machine have the same address.
    first, second = nodes.Node("a", "10.0.0.2", 4, 0), nodes.Node("b", "10.0.0.2", 4, 0)
    assert node_checks.differences(here, {first: here, second: here}) == []
    assert node_checks.differences(here, {first: {**here, "torch": "absent"}, second: here}) == [
        "torch is absent on node 10.0.0.2 and 2.15.0 here"
    ]
    assert nodes.some(["a", "b", "c", "d", "e"]) == "a; b; c; and 2 more"


def test_a_cluster_where_nothing_listens_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(RayclusterError, match=r"RAY_ADDRESS: nothing answers at 127\.0\.0\.1:9 .*; give the address"):
        connect.connect()
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("said", "kind", "means"),
    [
        (
            "Version mismatch: The cluster was started with: Ray: 2.59.0",
            ConfigError,
            "give all nodes the same container image",
        ),
        ("RPC error: InvalidAuthToken: …", ConfigError, "wants its token; put it into"),
        ("something else", RayclusterError, "could not be joined (something else); see `ray status`"),
    ],
)
def test_why_a_cluster_could_not_be_joined(said: str, kind: type[Exception], means: str) -> None:
    error = connect._not_joined("10.0.0.1:6379", RuntimeError(said))
    assert type(error) is kind
    assert means in str(error)


def test_a_driver_that_holds_cores_leaves_room_for_decoding() -> None:
    # The driver of a submitted job holds half a core or a whole one of a node's 2 or 16 cores.
    for cpus, actors in ((1.5, 1), (1.5, 2), (1.0, 1), (15.0, 15), (15.0, 16)):
        found = Resources(cpus, 2 if cpus < 2 else 16, 0.0, actors, 1)
        assert actors * found.reserved_cpus(actors) + replace(found, gpus=1.0).decode_cpus <= cpus


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
class TestOnThisMachine:
    def test_the_only_node_has_what_this_process_has(self) -> None:
        node_checks.check_versions()
        assert nodes.others() == []
        assert set(node_checks.versions_question()()) == {"python", "ray", "torch", "raycluster"}

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
        node_checks.check_seen(nodes.alive(), *(node_checks.place("images", path) for path in paths))

    def test_what_a_run_has_here_its_own_node_need_not_show(self, tmp_path: Path) -> None:
        config = RunConfig(images=str(tmp_path), output=str(tmp_path / "out"), clusters=2)
        common = cluster_checks.find_common(config, locate(config.output), [["/nowhere/a.jpg"], []], None)
        (here,) = nodes.alive()
        assert common == node_checks.Common(here.id, tuple(node_checks.versions_question()().items()))
        node_checks.check_here(replace(common, versions=(("torch", "1.0"),)))

    def test_what_is_compared_of_each_source(self, tmp_path: Path) -> None:
        for name in ("1.jpg", "5.jpg", "x.tar", "t.parquet", "listed.jpg", "tower"):
            (tmp_path / name).write_bytes(name.encode())
        samples = [
            [f"{tmp_path}/{number}.jpg" for number in range(7)],  # only two of them exist
            [f"{tmp_path}/x.tar#bytes={first}-{first + 9}/99" for first in (0, 10, 20)],
            [f"{tmp_path}/t.parquet#row=0/9"],
            ["s3://bucket/a.jpg", "s3://bucket/x.tar#bytes=0-9/99", f"file://{tmp_path}/listed.jpg"],
            ["s3://bucket/b.jpg"],
        ]
        spec = resolve_encoder(EncoderConfig(model="builtin"), use_gpu=False)
        spec = spec.tuned(TunedTower(locate(str(tmp_path / "tower")), "0" * 64))
        config = RunConfig(images=str(tmp_path), output=str(tmp_path / "out"), clusters=2)
        places = cluster_checks.find_common(config, locate(config.output), samples, spec).places
        assert [(each.field, Path(each.path).name) for each in places] == [
            ("model", "tower"),
            *(("images", name) for name in ("1.jpg", "5.jpg", "x.tar", "t.parquet", "listed.jpg")),
        ]

    def test_nodes_that_do_not_come_are_an_error_and_nothing_stays_reserved(self) -> None:
        wanted = ResourcesConfig(use_gpu=True, encoder_actors=2, wait_seconds=1)
        with pytest.raises(ConfigError, match=r"in 1 s the cluster has grown to 0 of 2 GPUs; see `ray status`"):
            resolve(wanted)
        cpus = int(ray.cluster_resources()["CPU"])
        assert resolve(ResourcesConfig(encoder_actors=cpus, wait_seconds=30)).encoder_actors == cpus


def test_which_weights_lie_on_a_disk(shared: Path) -> None:
    assert cluster_checks.local_weights(resolve_encoder(EncoderConfig(model="builtin"), use_gpu=False)) is None
    folder = f"local-dir:{shared / 'models' / 'photo-clip'}"
    assert cluster_checks.local_weights(resolve_encoder(EncoderConfig(model=folder), use_gpu=False)) == "encoder.model"


def test_local_paths_of_addresses() -> None:
    assert node_checks.local_path("s3://bucket/key") is None
    assert node_checks.local_path("/data/a.jpg") == node_checks.local_path("file:///data/a.jpg") == "/data/a.jpg"


# In the following tests two nodes differ: one has other code, or does not see a folder of the driver.


@pytest.mark.torture
@pytest.mark.timeout(400)
def test_a_node_with_other_code_is_refused(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "photos", 12, ("fish", "car"), seed=3)
    shutil.copytree(ROOT / "raycluster", tmp_path / "raycluster")
    with (tmp_path / "raycluster" / "assign.py").open("a") as file:
        file.write("# another version\n")
    with cluster_of(1) as (cluster, _):
        assert command(cluster, "doctor").returncode == 0
        with cluster.add_apart(f"mount --bind {tmp_path / 'raycluster'} {ROOT / 'raycluster'}"):
            done = command(cluster, *run(tmp_path / "photos", tmp_path / "out"))
            looked = command(cluster, "doctor")
    assert done.returncode == 2, done.stderr
    assert "raycluster is code" in done.stderr
    assert "submit with `--working-dir .`" in done.stderr
    assert looked.returncode == 2
    failed = [check["name"] for check in json.loads(looked.stdout)["checks"] if check["state"] == "failed"]
    assert failed == ["versions"]


def run(images: Path, output: Path, model: str = "builtin") -> tuple[str, ...]:
    words = ("run", "--images", str(images), "--output", str(output), "--clusters", "2")
    return (*words, "--encoder.model", model, "--method.name", "kmeans")


@pytest.mark.torture
@pytest.mark.timeout(600)
def test_a_folder_that_another_node_does_not_see_is_refused(tmp_path: Path) -> None:
    hidden, seen = tmp_path / "hidden", tmp_path / "seen"
    for place in (hidden, seen):
        draw_dataset(place / "photos", 12, ("fish", "car"), seed=3)
    shutil.copytree(ROOT / "raycluster" / "demo" / "clip", hidden / "clip")
    with cluster_of(1) as (cluster, _), cluster.add_apart(f"mount -t tmpfs none {hidden}"):
        for refused, words in {
            f"output: {hidden}/out is on this machine's disk": run(seen / "photos", hidden / "out"),
            f"images: {hidden}/photos": run(hidden / "photos", seen / "out"),
            "encoder.model:": run(seen / "photos", seen / "out", f"local-dir:{hidden}/clip"),
        }.items():
            done = command(cluster, *words)
            assert done.returncode == 2, done.stderr
            assert refused in done.stderr
            assert "on several nodes" in done.stderr
        # A disk that all nodes mount is as good as object storage.
        done = command(cluster, *run(seen / "photos", seen / "out"))
        assert done.returncode == 0, done.stderr


@pytest.mark.torture
@pytest.mark.timeout(400)
@pytest.mark.parametrize("hidden", ["code", "output"])
def test_a_node_that_joins_a_run_and_differs_stops_it_and_harms_nothing(hidden: str, tmp_path: Path) -> None:
    """The node that embeds dies, and the one that takes its place has other code, or does not see the output."""
    drawn = draw_dataset(tmp_path / "drawn", 100, ("fish", "car"), seed=3)
    (tmp_path / "photos").mkdir()
    for index in range(4000):
        (tmp_path / "photos" / f"{index:04d}.jpg").symlink_to(drawn[index % len(drawn)])
    output = tmp_path / "place" / "out"
    shutil.copytree(ROOT / "raycluster", tmp_path / "raycluster")
    (tmp_path / "raycluster" / "more.py").write_text("# another version\n")
    mounts = {
        "code": f"mount --bind {tmp_path / 'raycluster'} {ROOT / 'raycluster'}",
        "output": f"mount -t tmpfs none {tmp_path / 'place'}",
    }
    words = run(tmp_path / "photos", output)
    with cluster_of(1, environment=IMPATIENT) as (cluster, (first,)):
        started = subprocess.Popen(
            arguments(*words), env=environment(cluster), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        written = wait_until(lambda: list(output.glob("embeddings/*/part-*")), started, 120)
        cluster.kill(first)
        wait_until(lambda: cluster.living() == 1, started, 60)
        with cluster.add_apart(mounts[hidden]):
            _, errors = started.communicate(timeout=200)
        assert started.returncode == 2, errors
        assert {"code": "raycluster is code", "output": f"output: {output} is on this machine's disk"}[hidden] in errors
        kept = run_commands.stamp(written)
        cluster.add(num_cpus=1)
        again = command(cluster, *words)
        assert again.returncode == 0, again.stderr
    run_commands.check_stamped(json.loads(again.stdout)["tables"]["embeddings"], kept)
    statuses = pq.read_table(json.loads(again.stdout)["tables"]["assignments"])["status"]
    assert statuses.to_pylist() == ["ok"] * 4000
