"""Test how storage is reached, with which credentials, server, region and payer, and that every kind of path uses them."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pytest

from raycluster.cli import load_config, main
from raycluster.config import StorageConfig
from raycluster.errors import ConfigError
from raycluster.images.fetch import StorageError, fetch, fetch_batch
from raycluster.images.listing.manifest import list_images
from raycluster.section import validate
from raycluster.storage import s3 as clients
from raycluster.storage.location import delete_files, locate, read_table

BUCKET = "raycluster-test"


@contextmanager
def gateway(endpoint: str, host: str = "127.0.0.1", needs: str | None = None) -> Iterator[tuple[str, list[Any]]]:
    """A server that passes requests on to another and notes method, path and headers. It refuses requests without the header `needs`."""
    noted: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _hand_on(self) -> None:
            noted.append((self.command, self.path, dict(self.headers)))
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if needs and needs not in self.headers:
                refusal = b"<Error><Code>AccessDenied</Code><Message>pay</Message></Error>"
                self._answer(403, {"Content-Type": "application/xml"}, refusal)
                return
            target = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=30)
            # The host is part of the signature, so it stays as the client sent it.
            target.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                target.putheader(name, value)
            target.endheaders(body)
            answer = target.getresponse()
            self._answer(answer.status, dict(answer.getheaders()), answer.read())
            target.close()

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                    self.send_header(name, value)
            length = headers.get("content-length", headers.get("Content-Length")) if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _hand_on

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}", noted
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_file_is_written_read_listed_and_created_once(s3: StorageConfig) -> None:
    folder = locate(f"s3://{BUCKET}/storage-{time.time_ns()}", s3)
    (folder / "a b é#.txt").write_bytes(b"one")
    assert (folder / "a b é#.txt").read_bytes() == b"one"
    assert [file.name for file in folder.list()] == ["a b é#.txt"]
    assert (folder / "once").create(b"1")
    assert not (folder / "once").create(b"2")
    assert (folder / "once").read_bytes() == b"1"
    assert not (folder / "none").exists()
    assert locate(f"s3://{BUCKET}", s3).bucket_and_key == (BUCKET, "")


def run_without_keys(s3: StorageConfig, more: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Read and create a file in a process that has no keys in its environment."""
    code = f"""
import sys
from raycluster.config import StorageConfig
from raycluster.storage.location import locate
from raycluster.images.listing.bucket import list_objects
place = locate("s3://{BUCKET}/chain/" + sys.argv[1], StorageConfig(endpoint_url={s3.endpoint_url!r}))
place.write_bytes(b"written")
print(place.read_bytes().decode(), (place.parent / (place.name + ".lock")).create(b""), place.located_options.region)
print(sum(len(page) for page in list_objects(place.parent, lambda operation, uri: operation())) > 0)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")} | more
    environment |= {"AWS_EC2_METADATA_DISABLED": "true", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, os.urandom(4).hex()]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)


def test_credentials_and_region_come_from_the_profile(s3: StorageConfig, tmp_path: Path) -> None:
    keys = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    lines = [f"{name.lower()} = {value}" for name, value in keys.items()]
    (tmp_path / "credentials").write_text("\n".join(["[work]", *lines]) + "\n")
    (tmp_path / "config").write_text("[profile work]\nregion = eu-west-3\n")
    files = {
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_PROFILE": "work",
    }
    done = run_without_keys(s3, files)
    assert done.stdout.split() == ["written", "True", "eu-west-3", "True"], done.stderr
    again = run_without_keys(s3, {**files, "AWS_REGION": "us-east-1"})
    assert again.stdout.split() == ["written", "True", "us-east-1", "True"], again.stderr
    without = run_without_keys(s3, {**files, "AWS_PROFILE": "nobody"})
    assert without.returncode == 1
    assert "written" not in without.stdout


def test_a_public_bucket_needs_no_credentials(s3: StorageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    client = clients.python_client(s3)
    client.create_bucket(Bucket="raycluster-public", ACL="public-read")
    client.put_bucket_acl(Bucket="raycluster-public", ACL="public-read")
    client.put_object(Bucket="raycluster-public", Key="photos/a.jpg", Body=b"public", ACL="public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    nobody = s3.model_copy(update={"anonymous": True})
    (row,) = list_images(("s3://raycluster-public/photos/",), nobody, None).rows.read().to_pylist()
    assert fetch(row["uri"], nobody, 100, row["size"]).data == b"public"


def test_the_requester_pays_for_every_request(s3: StorageConfig) -> None:
    root = locate(f"s3://{BUCKET}/paid-{time.time_ns()}", s3)
    for name, data in {"photos/a.jpg": b"a" * 10, "photos/b.png": b"b" * 20}.items():
        (root / name).write_bytes(data)
    (root / "t.parquet").write_table(pa.table({"image": [b"one", b"two"]}))
    with gateway(str(s3.endpoint_url), needs="x-amz-request-payer") as (url, noted):
        free = s3.model_copy(update={"endpoint_url": url})
        assert fetch(f"{root.uri}/photos/a.jpg", free, 100).status == "forbidden"
        noted.clear()
        paid = free.model_copy(update={"requester_pays": True})
        rows = list_images((f"{root.uri}/photos", f"{root.uri}/t.parquet"), paid, None).rows.read()
        fetched = fetch_batch(rows["uri"].to_pylist(), rows["size"].to_pylist(), paid, 100)
        assert [item.data for item in fetched] == [b"a" * 10, b"b" * 20, b"one", b"two"]
        assert fetch(f"{root.uri}/photos/c.jpg", paid, 100).status == "missing"
        assert fetch(f"{root.uri}/photos/a.jpg", paid, 5).status == "too_large"
        place = locate(f"{root.uri}/out", paid)
        (place / "x.json").write_json({"x": 1})
        (place / "t.parquet").write_table(pa.table({"x": [1, 2]}))
        assert [file.name for file in place.list()] == ["t.parquet", "x.json"]
        assert [file.name for file in locate(root.uri, paid).list(".png", recursive=True)] == ["b.png"]
        assert read_table([place / "t.parquet"])["x"].to_pylist() == [1, 2]
        assert (place / "x.json").read_json() == {"x": 1}
        assert not (place / "none").exists()
        (place / "x.json").delete()
        assert [(place / "lock").create(b"") for _ in range(2)] == [True, False]
    assert len(noted) > 20
    # Deletes and the parts of an upload do not carry the header. All reads must.
    unpaid = [(method, path) for method, path, headers in noted if headers.get("x-amz-request-payer") != "requester"]
    assert not [request for request in unpaid if request[0] in ("GET", "HEAD")]


def test_the_payers_dead_keys_are_no_status(s3: StorageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    locate(f"s3://{BUCKET}/paid/photos/a.jpg", s3).write_bytes(b"a" * 10)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    paid = s3.model_copy(update={"requester_pays": True, "region": "eu-west-1"})
    with pytest.raises(StorageError, match="SignatureDoesNotMatch"):
        fetch(f"s3://{BUCKET}/paid/photos/a.jpg", paid, 100, sleep=lambda seconds: None)
    nowhere = StorageConfig(endpoint_url="http://127.0.0.1:9", region="us-east-1", requester_pays=True)
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9"):
        fetch(f"s3://{BUCKET}/paid/photos/a.jpg", nowhere, 100, sleep=lambda seconds: None)


@pytest.mark.parametrize("count", [1, 1001])
def test_many_files_are_deleted_with_few_requests_that_older_servers_accept(s3: StorageConfig, count: int) -> None:
    """They demand a header that botocore does not send of itself."""
    with gateway(str(s3.endpoint_url), needs="Content-MD5") as (url, noted):
        there, folder = (
            locate(f"s3://{BUCKET}/many", s3),
            locate(f"s3://{BUCKET}/many", StorageConfig(endpoint_url=url)),
        )
        names = [f"ä {number}.txt" for number in range(count)]
        for name in (*names[:3], "kept.txt"):
            (there / name).write_bytes(b"x")
        delete_files([folder / name for name in names])
        assert [command for command, _, _ in noted] == ["POST"] * (1 + count // 1001)
    assert [file.name for file in there.list()] == ["kept.txt"]
    delete_files([])


def test_a_deletion_that_is_refused_is_an_error(s3: StorageConfig) -> None:
    with gateway(str(s3.endpoint_url), needs="X-None") as (url, _), pytest.raises(OSError, match="pay"):
        delete_files([locate(f"s3://{BUCKET}/many/a.txt", StorageConfig(endpoint_url=url))])


@pytest.mark.parametrize(("path_style", "in_path"), [(None, True), (True, True), (False, False)])
def test_the_bucket_stands_where_it_was_asked_for(s3: StorageConfig, path_style: bool | None, in_path: bool) -> None:
    with gateway(str(s3.endpoint_url), host="localhost") as (url, noted):
        storage = s3.model_copy(update={"endpoint_url": url, "path_style": path_style})
        place = locate(f"s3://{BUCKET}/style/a.jpg", storage)
        # Not every server takes the bucket from the host name. Only the form of the request counts here.
        with suppress(OSError):
            place.exists()
        assert noted
        for _, path, headers in noted:
            assert path.startswith(f"/{BUCKET}") == in_path
            assert headers["Host"].startswith(f"{BUCKET}.localhost") != in_path


def test_aws_itself_is_addressed_in_the_path_where_asked_for() -> None:
    options = StorageConfig(path_style=True, region="eu-west-1")
    assert clients._endpoint(options) == "https://s3.eu-west-1.amazonaws.com"
    china = StorageConfig(path_style=True, region="cn-north-1")
    assert clients._endpoint(china) == "https://s3.cn-north-1.amazonaws.com.cn"
    assert clients._endpoint(StorageConfig(region="eu-west-1")) is None
    assert clients.addressing_style(StorageConfig(path_style=False)) == "virtual"
    assert clients.addressing_style(StorageConfig()) == "auto"
    assert clients.python_client(options)._endpoint.host == "https://s3.eu-west-1.amazonaws.com"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The buckets whose region was asked for: AWS cannot be reached from a test, so its answer is given here."""
    buckets: list[str] = []

    def answer(bucket: str) -> str:
        buckets.append(bucket)
        if bucket == "unreachable":
            raise OSError("AWS Error NETWORK_CONNECTION during HeadBucket operation")
        if bucket == "absent":
            raise OSError("Bucket 'absent' not found")
        return "ap-south-1"

    monkeypatch.setattr(clients.fs, "resolve_s3_region", answer)
    clients.located.cache_clear()
    yield buckets
    clients.located.cache_clear()


def test_each_bucket_is_met_in_its_own_region(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert [locate(f"s3://far/{i}").located_options.region for i in range(3)] == ["ap-south-1"] * 3
    assert locate("s3://far/x").filesystem.region == "ap-south-1"
    assert asked == ["far"]
    # If the region is named, or the server is not AWS, nothing is asked.
    assert locate("s3://far/x", StorageConfig(region="us-west-2")).located_options.region == "us-west-2"
    here = StorageConfig(endpoint_url="http://127.0.0.1:9")
    assert locate("s3://far/x", here).located_options.region == "eu-west-1"
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    clients.located.cache_clear()
    assert locate("s3://far/x", here).located_options.region == "us-east-1"
    assert asked == ["far"]


def test_a_region_that_cannot_be_asked_for(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="the bucket absent does not exist"):
        _ = locate("s3://absent/x").filesystem
    assert fetch("s3://absent/x.jpg", StorageConfig(), 100).status == "missing"
    with pytest.raises(ConfigError, match="the bucket absent does not exist"):
        list_images(("s3://absent/photos/",), StorageConfig(), None)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        _ = locate("s3://unreachable/x").filesystem
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert locate("s3://unreachable/x").located_options.region == "eu-west-1"


def test_the_server_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://one:1")
    assert locate("s3://b/x").options.endpoint_url == "http://one:1"
    assert locate("/x").options == StorageConfig()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://two:2")
    assert locate("s3://b/x", StorageConfig(region="r")).options == StorageConfig(
        endpoint_url="http://two:2", region="r"
    )
    assert locate("s3://b/x", StorageConfig(endpoint_url="http://three:3")).options.endpoint_url == "http://three:3"
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert locate("s3://b/x").options.endpoint_url is None
    monkeypatch.delenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://me:secret@two:2")
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL: `endpoint_url`: must begin with") as caught:
        locate("s3://b/x")
    assert "secret" not in str(caught.value)


def test_no_key_gets_into_a_configuration() -> None:
    for storage, message in (
        (
            {"endpoint_url": "http://me:hush@host:1"},
            "`endpoint_url`: must begin with http:// or https:// and hold neither",
        ),
        ({"endpoint_url": "host:9000"}, "must begin with http://"),
        ({"secret_key": "hush"}, "unknown key `secret_key`"),
        ({"anonymous": True, "requester_pays": True}, "requester_pays needs credentials"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            validate(storage, StorageConfig, "storage")
        assert "hush" not in str(caught.value)


def test_a_configuration_is_read_from_a_bucket(
    s3: StorageConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    place = locate(f"s3://{BUCKET}/configs/run.yaml", s3)
    place.write_bytes(
        f"images: s3://{BUCKET}/photos/\noutput: out\nclusters: 7\nstorage: {{region: us-east-1}}\n".encode()
    )
    given = {"storage": {"endpoint_url": s3.endpoint_url, "region": "us-east-1"}}
    config = load_config(place.uri, given)
    assert (config.clusters, config.storage.endpoint_url) == (7, s3.endpoint_url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", str(s3.endpoint_url))
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    assert load_config(place.uri, {}).clusters == 7
    assert main(["run", "--config", f"s3://{BUCKET}/configs/none.yaml"]) == 2
    assert "does not exist" in json.loads(capfd.readouterr().out)["error"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert main(["run", "--config", place.uri, "--storage.region", "eu-north-1"]) == 2
    assert "cannot be read" in json.loads(capfd.readouterr().out)["error"]
