"""Test runs whose S3 server stops, stands still, answers 503 or refuses the keys, and runs whose objects vanish or change.

    make torture        # or: pytest -m torture tests/torture/test_storage_faults.py -s

The tests need the folder `shared` with its `s3/s3server.sh`, which runs a real server. Faults begin when the first embeddings are written.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs
from run_commands import compare, finish, start, tables

from raycluster.config import StorageConfig
from raycluster.demo.drawing import draw_dataset
from raycluster.storage.location import Location, locate

pytestmark = [pytest.mark.torture, pytest.mark.timeout(900)]

IMAGES, PORT = 1200, 7485
ENDPOINT = f"http://127.0.0.1:{PORT}"
KEYS = {"AWS_ACCESS_KEY_ID": "labaccesskey", "AWS_SECRET_ACCESS_KEY": "labsecretkey0123456789"}
STORAGE = StorageConfig(endpoint_url=ENDPOINT, region="us-east-1")


@dataclass(frozen=True)
class Server:
    """The server, and what an undisturbed run on it wrote."""

    script: Path
    folder: Path
    images: Location
    nouns: Location
    expected: dict[str, pa.Table]

    def do(self, command: str, *arguments: str) -> None:
        """Run one of the script's commands."""
        subprocess.run(
            ["bash", str(self.script), command, str(self.folder), *arguments], check=True, capture_output=True
        )


@pytest.fixture(scope="module")
def server(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    script, folder = shared / "s3" / "s3server.sh", Path("/var/tmp/raycluster-faults")
    subprocess.run(["bash", str(script), "start", str(folder), str(PORT)], check=True, capture_output=True, timeout=300)
    os.environ.update(KEYS)
    fs.S3FileSystem(endpoint_override=ENDPOINT, region="us-east-1", allow_bucket_creation=True).create_dir("faults")
    root = locate(f"s3://faults/{time.time_ns()}", STORAGE)
    local = tmp_path_factory.mktemp("drawn")
    drawn = draw_dataset(local, IMAGES, ("house", "fish", "tree", "star"), seed=6)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda p: (root / "photos" / p.parent.name / p.name).write_bytes(p.read_bytes()), drawn))
    (root / "nouns.txt").write_bytes(b"house\nfish\ntree\nstar\ncar\n")
    found = Server(script, folder, root / "photos", root / "nouns.txt", {})
    result = finish(start(*configuration(found, local)))
    assert result is not None, (local / "log").read_text()
    found.expected.update(tables(result, STORAGE))
    yield found
    found.do("stop")


def configuration(server: Server, folder: Path, **changes: Any) -> tuple[Path, Path]:
    """YAML file and log of a run whose input and output lie in the bucket."""
    config = {
        "images": server.images.uri,
        "output": f"{server.images.parent.uri}/{folder.name}",
        "clusters": 4,
        "encoder": {"model": "builtin"},
        "vocabulary": {"source": server.nouns.uri, "cache": f"{server.images.parent.uri}/cache"},
        "method": {"name": "kmeans"},
        "storage": STORAGE.model_dump(),
        **changes,
    }
    (folder / "run.yaml").write_text(json.dumps(config))
    (folder / "log").touch()
    return folder / "run.yaml", folder / "log"


def embedding_has_begun(server: Server, folder: Path) -> None:
    """Wait until a part of the embeddings is written."""
    place = locate(f"{server.images.parent.uri}/{folder.name}/embeddings", STORAGE)
    deadline = time.monotonic() + 120
    while not place.list(".parquet", recursive=True):
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.05)


def gone_for(seconds: float, stop: str, back: str) -> Callable[[Server], None]:
    def fault(server: Server) -> None:
        server.do(stop)
        time.sleep(seconds)
        server.do(back)

    return fault


def overloaded(server: Server) -> None:
    server.do("limit", "1")
    time.sleep(20)
    server.do("limit", "1024")


FAULTS = {
    "killed and started again": gone_for(10, "gw-kill", "gw-start"),
    "standing still": gone_for(20, "gw-pause", "gw-resume"),
    "503": overloaded,
    "its store gone": gone_for(10, "osd-kill", "osd-start"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_transient_fault_costs_time_and_no_row(fault: str, server: Server, tmp_path: Path) -> None:
    run = start(*configuration(server, tmp_path))
    embedding_has_begun(server, tmp_path)
    began = time.monotonic()
    FAULTS[fault](server)
    result = finish(run)
    print(f"{fault}: ended {'well' if result else 'with an error'} {time.monotonic() - began:.0f} s after it began")
    if result is None:
        # An outage that lasts longer than the retries may stop a run. It must say so, and go on when it is called again.
        assert "run the command again" in (tmp_path / "log").read_text()
        result = finish(start(*configuration(server, tmp_path)))
    assert result is not None, (tmp_path / "log").read_text()
    compare(tables(result, STORAGE), server.expected)


def test_dead_credentials_stop_the_run_within_a_minute_and_fail_no_row(server: Server, tmp_path: Path) -> None:
    run = start(*configuration(server, tmp_path))
    embedding_has_begun(server, tmp_path)
    server.do("keys-off")
    began = time.monotonic()
    try:
        printed, _ = run.communicate(timeout=120)
        took = time.monotonic() - began
    finally:
        server.do("keys-on")
    print(f"stopped after {took:.0f} s")
    assert run.returncode == 1
    assert took < 60
    assert "credentials" in json.loads(printed)["error"]
    result = finish(start(*configuration(server, tmp_path)))
    assert result is not None, (tmp_path / "log").read_text()
    compare(tables(result, STORAGE), server.expected)


def test_objects_that_vanish_or_change_get_their_status(server: Server, tmp_path: Path) -> None:
    copies = [Location(f"{server.images.path}/late/{i}.jpg", "s3", STORAGE) for i in range(40)]
    picture = server.images.list(".jpg", recursive=True)[0].read_bytes()
    for copy in copies:
        copy.write_bytes(picture)

    def vanish() -> None:
        for copy in copies[:20]:
            copy.delete()
        for copy in copies[20:]:
            copy.write_bytes(picture + b"more")

    run = start(*configuration(server, tmp_path))
    place = locate(f"{server.images.parent.uri}/{tmp_path.name}/_stages/manifest.json", STORAGE)
    while not place.exists():
        time.sleep(0.02)
    worker = threading.Thread(target=vanish)
    worker.start()
    result = finish(run)
    worker.join()
    for copy in copies[20:]:
        copy.delete()
    assert result is not None, (tmp_path / "log").read_text()
    late = [row for row in tables(result, STORAGE)["embeddings"].to_pylist() if row["image_id"].startswith("late/")]
    kinds = {row["status"] for row in late}
    print(f"{kinds}")
    assert len(late) == 40
    # A picture that was read before it vanished is ok. The others must be missing or changed.
    assert kinds <= {"ok", "missing", "changed"}
    assert {"missing", "changed"} & kinds
