"""Test `raycluster doctor` with problems that really occur: keys, buckets, permissions, and servers that are gone or silent."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raycluster.cli import main
from raycluster.compute import nodes
from raycluster.config import RunConfig, StorageConfig
from raycluster.pipeline.doctor import doctor
from raycluster.section import validate
from raycluster.storage.location import locate
from raycluster.storage.probes import Check, storage_checks

needs_ray = pytest.mark.usefixtures("local_ray")

OUTPUT = tuple(f"output {step}" for step in ("list", "put", "get", "delete", "lock"))


def configured(output: str, images: str = "s3://raycluster-test/", **storage: Any) -> RunConfig:
    options = {"region": "us-east-1", **storage}
    return validate({"images": images, "output": output, "clusters": 2, "storage": options}, RunConfig)


def checked(config: RunConfig) -> dict[str, Check]:
    """The storage's checks by name; they must not take long, whatever is wrong."""
    started = time.monotonic()
    found = {check.name: check for check in storage_checks(config)}
    assert time.monotonic() - started < 15 * len(found)
    return found


def assert_failed(check: Check, reason: str, remedy: str) -> None:
    assert check.state == "failed"
    assert reason in check.detail
    assert remedy in check.remedy


def states(found: dict[str, Check]) -> list[str]:
    return [found[name].state for name in OUTPUT]


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set some keys. These tests need no keys that a server knows."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "some")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "keys")


@pytest.mark.usefixtures("keys")
def test_a_server_that_is_gone() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{taken.getsockname()[1]}"
        found = checked(configured("s3://bucket/out", "s3://bucket/in", endpoint_url=gone))
    assert_failed(found["output list"], "the server does not answer", "check storage.endpoint_url")
    assert_failed(found["images list"], "images: s3://bucket/in: the server does not answer", "storage.region")
    assert states(found) == ["failed", "skipped", "skipped", "skipped", "skipped"]


@pytest.mark.long
@pytest.mark.usefixtures("keys")
def test_a_server_that_takes_connections_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        found = checked(configured("s3://bucket/out", str(Path.cwd()), endpoint_url=address))
        assert time.monotonic() - started < 15
    assert_failed(found["output list"], "the server does not answer", "check storage.endpoint_url")


def test_no_credentials_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    config = configured(str(tmp_path / "out"), "s3://bucket/in", endpoint_url="http://127.0.0.1:9")
    assert_failed(checked(config)["credentials"], "no AWS credentials were found", "give the machine a role")
    public = configured(str(tmp_path / "out"), "s3://bucket/in", endpoint_url="http://127.0.0.1:9", anonymous=True)
    assert checked(public)["credentials"].state == "ok"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    found = checked(configured("/proc/raycluster/out", str(tmp_path)))
    assert states(found) == ["ok", "failed", "skipped", "skipped", "skipped"]
    assert found["output put"].remedy
    (tmp_path / "file").touch()
    found = checked(configured(str(tmp_path / "file" / "out"), str(tmp_path / "absent")))
    assert "failed" in states(found)
    assert_failed(found["images list"], "nothing is there", "correct `images`")


def test_a_local_output_that_works_is_left_as_it_was(tmp_path: Path) -> None:
    found = checked(configured(str(tmp_path / "out"), f"{tmp_path}/shard-{{000..007}}.tar"))
    assert states(found) == ["ok"] * 5
    assert found["images list"].state == "ok"
    assert "credentials" not in found
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def bucket(s3: StorageConfig) -> Iterator[str]:
    """A bucket of its own, empty, on the server."""
    import botocore.session

    client = botocore.session.get_session().create_client("s3", endpoint_url=s3.endpoint_url, region_name="us-east-1")
    name = f"raycluster-doctor-{time.time_ns()}"
    client.create_bucket(Bucket=name)
    yield name
    client.delete_bucket_policy(Bucket=name)
    # When Arrow's client deletes the last file of a folder, it keeps the folder as an empty object.
    for key in client.list_objects_v2(Bucket=name).get("Contents", []):
        client.delete_object(Bucket=name, Key=key["Key"])
    client.delete_bucket(Bucket=name)


def test_all_is_well_and_nothing_is_left_behind(bucket: str, s3: StorageConfig) -> None:
    found = checked(configured(f"s3://{bucket}/out", f"s3://{bucket}", endpoint_url=s3.endpoint_url))
    assert {check.state for check in found.values()} == {"ok"}, found
    assert not locate(f"s3://{bucket}", s3).list(recursive=True)


def test_wrong_keys(bucket: str, s3: StorageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    found = checked(configured(f"s3://{bucket}/out", f"s3://{bucket}", endpoint_url=s3.endpoint_url))
    assert_failed(found["output list"], "access is denied", "check the keys that the line `credentials` shows")
    assert_failed(found["images list"], "access is denied", "s3:ListBucket")


def test_a_bucket_that_is_not_there(s3: StorageConfig) -> None:
    found = checked(
        configured(
            "s3://raycluster-no-such-bucket/out", "s3://raycluster-no-such-bucket/in", endpoint_url=s3.endpoint_url
        )
    )
    assert_failed(found["output list"], "the bucket raycluster-no-such-bucket does not exist", "create it")
    assert_failed(found["images list"], "the bucket raycluster-no-such-bucket does not exist", "correct its name")


@pytest.mark.parametrize(("denied", "failing"), [("s3:PutObject", "output put"), ("s3:DeleteObject", "output delete")])
def test_an_output_that_may_only_be_read_or_only_be_written(
    bucket: str, s3: StorageConfig, denied: str, failing: str
) -> None:
    import botocore.session

    client = botocore.session.get_session().create_client("s3", endpoint_url=s3.endpoint_url, region_name="us-east-1")
    statement = {"Effect": "Deny", "Principal": "*", "Action": denied, "Resource": f"arn:aws:s3:::{bucket}/*"}
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    found = checked(configured(f"s3://{bucket}/out", f"s3://{bucket}", endpoint_url=s3.endpoint_url))
    assert_failed(found[failing], "access is denied", f"allowed {denied} there")


@needs_ray
@pytest.mark.ray
def test_ray_its_nodes_and_the_final_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["doctor", "--images", str(tmp_path), "--output", str(tmp_path / "out"), "--clusters", "2"]
    assert main(words) == 0
    (line,) = capfd.readouterr().out.splitlines()
    result = json.loads(line)
    assert (result["command"], result["status"]) == ("doctor", "ok")
    assert [check["name"] for check in result["checks"]] == [
        *OUTPUT,
        *("images list", "ray", "versions", "gpus", "/dev/shm", "disk"),
    ]
    assert all(check["detail"] and not check["remedy"] for check in result["checks"])
    assert main([*words, "--resources.use_gpu", "true"]) == 2
    failed = [c for c in json.loads(capfd.readouterr().out)["checks"] if c["state"] == "failed"]
    assert [check["name"] for check in failed] == ["gpus"]
    assert "remove the field, or join a cluster with GPUs" in failed[0]["remedy"]


@needs_ray
@pytest.mark.ray
def test_without_a_run_only_ray_is_tried() -> None:
    result = doctor(None)
    assert result["status"] == "ok"
    assert result["checks"][0] == {**result["checks"][0], "name": "storage", "state": "skipped"}


def test_small_shared_memory_and_full_disks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from raycluster.errors import ConfigError
    from raycluster.pipeline import doctor as room

    node = nodes.Node("a", "10.0.0.7", 8, 0)
    listed = [{"NodeID": "a", "Alive": True, "Resources": {"object_store_memory": 8 * 2**30}}]
    monkeypatch.setattr(room.ray, "nodes", lambda: listed)
    with pytest.raises(ConfigError, match=r"/dev/shm has 0\.1 GiB on node 10\.0\.0\.7, .* 8\.0 GiB.*; enlarge it"):
        room._shm({node: {"shm": 2**26, "disk": 2**40, "free": 2**39}})
    with pytest.raises(ConfigError, match=r"1\.0 GiB free on node 10\.0\.0\.7.*; make room"):
        room._disk({node: {"shm": 2**36, "disk": 2**40, "free": 2**30}})
    with pytest.raises(ConfigError, match="make room"):
        room._disk({node: {"shm": 2**36, "disk": 2**40, "free": 2**35}})
