"""Test a real Ray Serve with kills, bad clients and a long load. Each test takes minutes, so only `make torture` runs them."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from serving_kit import Load, ServeEndpoint, make_model, multipart, post, wait_until

from raycluster.pipeline.run import RunResult
from raycluster.serving.client import Client

pytestmark = [pytest.mark.torture, pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

SOAK_SECONDS = float(os.environ.get("RAYCLUSTER_SOAK_SECONDS", "600"))


def processes(title: str) -> list[int]:
    """Ids of the actors of this process' Ray whose title begins with `title`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cmdline").read_bytes().decode().startswith(f"ray::{title}") and _ours(int(entry.name)):
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _ours(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def kill_and_wait(title: str) -> float:
    """Kill one of these processes, and wait until Serve has replaced it; return the seconds that this took."""
    before, started = processes(title), time.monotonic()
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: before[0] not in (now := processes(title)) and len(now) == len(before), 180)
    return time.monotonic() - started


def ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/readyz", timeout=20).ok
    except requests.ConnectionError:
        return False


def settle(endpoint: ServeEndpoint, replicas: int) -> None:
    """Wait until the old replicas are gone."""
    titles = ("ServeReplica:raycluster:Model", "ServeReplica:raycluster:Ingress")
    wait_until(lambda: endpoint.status() == "RUNNING" and all(len(processes(t)) == replicas for t in titles), 240)


@pytest.fixture(scope="module")
def twice(endpoint: ServeEndpoint) -> Iterator[ServeEndpoint]:
    """The endpoint with two replicas of each deployment."""
    double = {"num_cpus": 0.25, "min_replicas": 2, "max_replicas": 2}
    endpoint.deploy(ingress=double, model=double)
    settle(endpoint, 2)
    yield endpoint
    endpoint.deploy()
    settle(endpoint, 1)


@pytest.mark.timeout(600)
def test_a_killed_model_replica_costs_nothing(twice: ServeEndpoint, files: list[Path]) -> None:
    with Load(twice.url, files[:4]) as load:
        for _ in range(3):
            before = len(load.replies)
            kill_and_wait("ServeReplica:raycluster:Model")
            wait_until(lambda before=before: len(load.replies) > before + 20)
    assert load.failed == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("title", ["ServeReplica:raycluster:Ingress", "ProxyActor"])
def test_a_killed_ingress_or_proxy_costs_a_retry(twice: ServeEndpoint, files: list[Path], title: str) -> None:
    """Requests that the killed process had taken get an error or no answer, and the client sends them again."""
    items: list[dict] = []
    stop = threading.Event()

    def ask() -> None:
        client = Client(twice.url, batch=4, parallel=3)
        endless = itertools.takewhile(lambda _: not stop.is_set(), itertools.cycle(files))
        items.extend(client.assign(endless))

    thread = threading.Thread(target=ask)
    thread.start()
    for _ in range(2):
        time.sleep(3)
        print(f"{title}: another one after {kill_and_wait(title):.1f} s")
    wait_until(lambda: ready(twice.url), 120)
    stop.set()
    thread.join(150)
    assert not thread.is_alive()
    assert len(items) > 100
    assert all(item["error"] is None for item in items)
    clusters = np.array([item["cluster"] for item in items[: len(items) // len(files) * len(files)]]).reshape(
        -1, len(files)
    )
    assert (clusters == clusters[0]).all()


@pytest.mark.timeout(300)
def test_bad_clients_tie_nothing_up(endpoint: ServeEndpoint, files: list[Path]) -> None:
    """Hundreds of clients send slowly, send nothing or hang up. For others, the median time is at most ten times the usual one plus 1 s."""
    head = b"POST /v1/assign HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{"

    def connect(data: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", endpoint.port))
        connection.sendall(data)
        return connection

    def seconds() -> float:
        started = time.monotonic()
        assert post(endpoint.url, files[:2]).status_code == 200
        return time.monotonic() - started

    alone = sorted(seconds() for _ in range(9))
    stop = threading.Event()

    def drip(connections: list[socket.socket]) -> None:
        while not stop.wait(0.5):
            for connection in connections:
                try:
                    connection.sendall(b" ")
                except OSError:
                    continue

    slow = [connect(head) for _ in range(300)]
    silent = [connect(b"POST /v1/assign HT") for _ in range(300)]
    thread = threading.Thread(target=drip, args=(slow,))
    thread.start()
    for _ in range(3):
        for connection in [connect(head) for _ in range(100)]:
            connection.close()
    # These clients hang up before their answer is complete.
    big = requests.Request("POST", f"{endpoint.url}/v1/assign", files=multipart(files[:16])).prepare()
    for _ in range(50):
        lines = [f"{key}: {value}" for key, value in big.headers.items()]
        request = "\r\n".join(["POST /v1/assign HTTP/1.1", "Host: x", *lines, "", ""]).encode() + (big.body or b"")
        connect(request).close()
    among = sorted(seconds() for _ in range(9))
    stop.set()
    thread.join()
    print(f"median alone {alone[4]:.3f} s, among bad clients {among[4]:.3f} s")
    assert among[4] < 10 * alone[4] + 1
    for connection in [*slow, *silent]:
        connection.close()
    assert seconds() < 10


@pytest.mark.timeout(SOAK_SECONDS + 600)
def test_memory_stays_flat(
    endpoint: ServeEndpoint, run: RunResult, files: list[Path], photos: Path, tmp_path: Path
) -> None:
    """All kinds of requests are sent over and over, with swaps of the model and requests that are too large in between."""
    other = make_model(run, tmp_path / "other", {"name": "tac", "trained": False})
    titles = ("ServeReplica:raycluster:Model", "ServeReplica:raycluster:Ingress", "ProxyActor")
    pids = {title: processes(title)[0] for title in titles}
    samples: dict[str, list[float]] = {title: [] for title in titles}
    end, turn = time.monotonic() + SOAK_SECONDS, itertools.count()

    def memory(pid: int) -> float:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))) / 1024

    with Load(endpoint.url, [*files[:8], photos / "text.jpg"], threads=4) as load:
        while time.monotonic() < end:
            index = next(turn)
            requests.get(f"{endpoint.url}/v1/clusters/{index % 4}", timeout=60)
            requests.get(f"{endpoint.url}/metrics", timeout=60)
            requests.post(
                f"{endpoint.url}/v1/assign", data=b"x" * 2**21, headers={"content-type": "application/json"}, timeout=60
            )
            if index % 5 == 0:
                endpoint.deploy([{"name": "Model", "user_config": {"run": (other, run.output)[index % 2]}}])
            time.sleep(2)
            for title, pid in pids.items():
                samples[title].append(memory(pid))
    assert {status for status, _ in load.replies} <= {200, 503}
    assert sum(status == 200 for status, _ in load.replies) > 0.9 * len(load.replies)
    for title, values in samples.items():
        third = len(values) // 3
        first, last = np.median(values[third : third + max(1, third // 2)]), np.median(values[-max(1, third // 2) :])
        print(
            f"{title}: {values[0]:.0f} MiB at the start, {first:.0f} after a third, {last:.0f} at the end; {len(load.replies)} requests"
        )
        assert last < 1.05 * first + 8, title
