"""Test that fetching a picture gives its bytes or a status, and that a problem with the storage raises an error."""

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from raycluster.config import StorageConfig
from raycluster.images import fetch as module
from raycluster.images.fetch import Fetched, StorageError, fetch, fetch_batch, retry
from raycluster.storage import credentials
from raycluster.storage import s3 as clients
from raycluster.storage.credentials import CredentialsError
from raycluster.storage.location import locate

LOCAL = StorageConfig()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.jpg").write_bytes(b"0123456789")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone")
    (tmp_path / "link.jpg").symlink_to("good.jpg")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "a b#%20é.jpg").write_bytes(b"odd")
    os.mkfifo(tmp_path / "pipe.jpg")
    return tmp_path


def never(seconds: float) -> None:
    raise AssertionError(f"waited {seconds} s for an error that is permanent")


@pytest.mark.parametrize(
    ("name", "status", "data"),
    [
        ("good.jpg", "ok", b"0123456789"),
        ("link.jpg", "ok", b"0123456789"),
        ("a b#%20é.jpg", "ok", b"odd"),
        ("empty.jpg", "empty", None),
        ("none.jpg", "missing", None),
        ("dangling.jpg", "missing", None),
        ("circle.jpg", "missing", None),
        ("good.jpg/below.jpg", "missing", None),
        ("folder.jpg", "failed", None),
        ("pipe.jpg", "failed", None),
        ("x" * 300 + ".jpg", "failed", None),
        ("nul\0.jpg", "failed", None),
    ],
)
def test_each_local_file_has_its_fate_at_once(folder: Path, name: str, status: str, data: bytes | None) -> None:
    fetched = fetch(f"{folder}/{name}", LOCAL, 100, sleep=never)
    assert (fetched.status, fetched.data) == (status, data)
    assert (fetched.error is None) == (status == "ok")
    assert str(folder) not in (fetched.error or "") or name.startswith("nul")


def test_unreadable_file_is_forbidden(folder: Path) -> None:
    (folder / "good.jpg").chmod(0)
    root = os.geteuid() == 0
    if root:  # root may read every file
        os.seteuid(65534)
    try:
        fetched = fetch(f"{folder}/good.jpg", LOCAL, 100, sleep=never)
    finally:
        if root:
            os.seteuid(0)
    assert fetched == Fetched(None, "forbidden", "permission denied")


def test_other_schemes_are_unsupported_and_say_so() -> None:
    for uri in ("https://example.org/a.jpg", "gs://bucket/a.jpg", "s3://"):
        fetched = fetch(uri, LOCAL, 100, sleep=never)
        assert fetched.status == "unsupported"
        assert uri in fetched.error


def test_size_limit_holds_to_the_byte_and_larger_files_are_not_read(folder: Path) -> None:
    assert fetch(f"{folder}/good.jpg", LOCAL, 10).status == "ok"
    assert fetch(f"{folder}/good.jpg", LOCAL, 9).status == "too_large"
    with open(folder / "huge.jpg", "wb") as file:
        file.truncate(1 << 42)  # a sparse file; if its four terabytes were read, the test would hang
    assert fetch(f"{folder}/huge.jpg", LOCAL, 100).status == "too_large"


def test_another_size_than_in_the_manifest_is_changed(folder: Path) -> None:
    assert fetch(f"{folder}/good.jpg", LOCAL, 100, expected_size=10).status == "ok"
    fetched = fetch(f"{folder}/good.jpg", LOCAL, 100, expected_size=12)
    assert fetched == Fetched(None, "changed", "10 bytes now, 12 bytes in the manifest")
    assert fetch(f"{folder}/empty.jpg", LOCAL, 100, expected_size=5).status == "changed"
    assert fetch(f"{folder}/empty.jpg", LOCAL, 100, expected_size=0).status == "empty"


def test_batch_keeps_the_order(folder: Path) -> None:
    uris = [f"{folder}/{i}.jpg" for i in range(200)]
    for i, uri in enumerate(uris):
        if i % 3:
            Path(uri).write_bytes(b"%d" % i)
    batch = fetch_batch(uris, [None] * 200, LOCAL, 100, threads=8)
    assert [item.data for item in batch] == [b"%d" % i if i % 3 else None for i in range(200)]
    assert [item.status for item in batch] == ["ok" if i % 3 else "missing" for i in range(200)]
    assert fetch_batch([], [], LOCAL, 100, threads=8) == []


def test_retry_waits_longer_each_time_and_then_gives_the_answer() -> None:
    waits: list[float] = []
    answers: list[object] = [
        OSError(5, "Input/output error"),
        TimeoutError("slow"),
        ConnectionResetError("reset"),
        "bytes",
    ]

    def operation() -> object:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert retry(operation, "a.jpg", waits.append) == "bytes"
    assert len(waits) == 3
    assert all(2**i / 2 <= wait <= 2**i for i, wait in enumerate(waits))


def test_lasting_error_is_raised_not_turned_into_a_status() -> None:
    waits: list[float] = []

    def operation() -> None:
        raise OSError("AWS Error SLOW_DOWN during GetObject operation")

    with pytest.raises(StorageError, match=r"s3://b/a\.jpg: the storage failed 5 times.*SLOW_DOWN"):
        retry(operation, "s3://b/a.jpg", waits.append)
    assert len(waits) == module.TRIES - 1
    assert sum(waits) < module.PATIENCE_S


def test_no_new_try_begins_when_patience_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.8)
    tries: list[float] = []

    def operation() -> None:
        tries.append(time.monotonic())
        time.sleep(0.5)
        raise OSError("hangs")

    with pytest.raises(StorageError, match="the storage failed 2 times in 1 s"):
        retry(operation, "a.jpg", lambda seconds: None)
    assert len(tries) == 2


def test_one_try_that_used_up_all_patience_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)

    def operation() -> None:
        raise OSError("hangs")

    with pytest.raises(StorageError, match="the storage failed 1 time in 0 s"):
        retry(operation, "a.jpg", never)


def test_server_that_does_not_answer_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, but not listening: connections are refused
        storage = StorageConfig(
            endpoint_url=f"http://127.0.0.1:{held.getsockname()[1]}", region="us-east-1", anonymous=True
        )
        monkeypatch.setattr(module, "TRIES", 1)
        monkeypatch.setattr(clients, "ATTEMPTS", 1)
        with pytest.raises(StorageError, match="NETWORK_CONNECTION"):
            fetch("s3://bucket/a.jpg", storage, 100, sleep=lambda seconds: None)


def test_overlong_and_malformed_keys_are_failed() -> None:
    storage = StorageConfig(endpoint_url="http://127.0.0.1:9", region="us-east-1", anonymous=True)
    for key in ("k" * 1100, "é" * 513, "a//b.jpg"):
        assert fetch(f"s3://bucket/{key}", storage, 100, sleep=never).status == "failed"


@pytest.fixture(scope="module")
def storage(s3: StorageConfig) -> StorageConfig:
    root = locate("s3://raycluster-test/fetch", s3)
    for name, data in {
        "a b#%20é.jpg": b"picture",
        "sub/b.PNG": b"x" * 50,
        "empty.jpg": b"",
        "note.txt": b"t",
    }.items():
        (root / name).write_bytes(data)
    return s3


def test_s3_fates(storage: StorageConfig) -> None:
    names = ["a b#%20é.jpg", "sub/b.PNG", "empty.jpg", "none.jpg", "sub"]
    uris = [f"s3://raycluster-test/fetch/{name}" for name in names]
    batch = fetch_batch(uris, [7, 51, None, None, None], storage, 100, threads=4)
    assert [item.status for item in batch] == ["ok", "changed", "empty", "missing", "missing"]
    assert batch[0].data == b"picture"
    assert fetch(uris[1], storage, 49).status == "too_large"
    assert fetch("s3://raycluster-none/a.jpg", storage, 100).status == "missing"


def test_s3_private_object_is_forbidden(storage: StorageConfig) -> None:
    nobody = storage.model_copy(update={"anonymous": True})
    assert fetch("s3://raycluster-test/fetch/sub/b.PNG", nobody, 100, sleep=never).status == "forbidden"


def test_s3_wrong_credentials_are_raised(storage: StorageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    other = storage.model_copy(update={"region": "us-east-2"})  # another region, so that no cached client is used
    with pytest.raises(CredentialsError, match="SIGNATURE_DOES_NOT_MATCH"):
        fetch("s3://raycluster-test/fetch/sub/b.PNG", other, 100, sleep=lambda seconds: None)


def test_s3_many_threads(storage: StorageConfig) -> None:
    uris = ["s3://raycluster-test/fetch/sub/b.PNG"] * 200
    before = threading.active_count()
    assert {item.status for item in fetch_batch(uris, [50] * 200, storage, 100, threads=16)} == {"ok"}
    assert threading.active_count() < before + 20


def test_s3_listing(storage: StorageConfig) -> None:
    from raycluster.images.listing.manifest import list_images

    listing = list_images(("s3://raycluster-test/fetch/",), storage, "folder")
    rows = listing.rows.read().to_pylist()
    assert [(row["image_id"], row["size"], row["label"]) for row in rows] == [
        ("a b#%20é.jpg", 7, None),
        ("empty.jpg", 0, None),
        ("sub/b.PNG", 50, "sub"),
    ]
    assert rows[0]["uri"] == "s3://raycluster-test/fetch/a b#%20é.jpg"
    assert all(row["modified"] is not None for row in rows)
    assert listing.other_files == 1
    assert fetch(rows[0]["uri"], storage, 100, rows[0]["size"]).data == b"picture"


def test_s3_a_refusal_of_what_could_be_read_before_is_the_end_of_the_credentials(
    storage: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "PERIOD_S", 0.0)
    client = clients.python_client(storage)
    nobody = storage.model_copy(update={"anonymous": True})

    def grant(bucket: str, acl: str) -> None:
        client.put_bucket_acl(Bucket=bucket, ACL=acl)
        client.put_object(Bucket=bucket, Key="a.jpg", Body=b"12", ACL=acl)

    for bucket, acl in {"raycluster-shown": "public-read", "raycluster-hidden": "private"}.items():
        client.create_bucket(Bucket=bucket)
        grant(bucket, acl)
    assert fetch("s3://raycluster-shown/a.jpg", nobody, 100, sleep=never).status == "ok"
    assert fetch("s3://raycluster-hidden/a.jpg", nobody, 100, sleep=never).status == "forbidden"
    grant("raycluster-shown", "private")
    with pytest.raises(CredentialsError, match=r"refuses the credentials \(AccessDenied\)"):
        fetch("s3://raycluster-hidden/a.jpg", nobody, 100, sleep=never)
