"""Test `raycluster serve` as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from serving_kit import free_port, make_model, post, wait_until

from raycluster.cli import main
from raycluster.pipeline.run import RunResult


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "`run` is missing"),
        (["--run", "{nowhere}"], 2, "neither a run folder"),
        (["--run", "{run}", "--port", "{taken}"], 2, "cannot listen there"),
        (["--run", "{run}", "--host", "203.0.113.1"], 2, "cannot listen there"),
        (["--run", "{run}", "--tokens_file", "{nowhere}"], 2, "cannot be read"),
        (["--run", "{run}", "--allowed_prefixes", "ftp://x"], 2, "not supported"),
        (["--run", "{run}", "--limits.max_items", "0"], 2, "limits.max_items"),
    ],
)
def test_what_cannot_work_is_said_at_once(
    run: RunResult, tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        places = {"nowhere": str(tmp_path / "nowhere"), "run": run.output, "taken": str(taken.getsockname()[1])}
        assert main(["serve", *(option.format(**places) for option in options)]) == code
    result = json.loads(capfd.readouterr().out)
    assert (result["command"], result["status"]) == ("serve", "failed")
    assert message in result["error"]


def test_a_cluster_is_not_for_this_command(run: RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    assert main(["serve", "--run", run.output]) == 2


@contextmanager
def served(run: str, log: Path, *options: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    port = free_port()
    command = [sys.executable, "-m", "raycluster.cli", "serve", "--run", run, "--port", str(port), *options]
    # The command starts a Ray of its own.
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **environment}
        ) as process,
    ):
        try:
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.terminate()


def ready(url: str, process: subprocess.Popen[str]) -> bool:
    assert process.poll() is None
    try:
        return requests.get(f"{url}/readyz", timeout=20).status_code == 200
    except (requests.ConnectionError, requests.Timeout):
        return False


@pytest.mark.timeout(400)
@pytest.mark.slow
def test_from_the_start_to_the_end(run: RunResult, files: list[Path], tmp_path: Path) -> None:
    """It listens on loopback, asks for tokens from the environment, takes over the run's new model, and ends with one line."""
    token = {"authorization": "Bearer a-token-of-some-length"}
    output, log = tmp_path / "out", tmp_path / "log"
    shutil.copytree(run.output, output)
    options = ("--watch_seconds", "0.5", "--model.num_cpus", "0.5", "--ingress.num_cpus", "0.5")
    with served(str(output), log, *options, RAYCLUSTER_TOKENS="a-token-of-some-length") as (url, process):
        wait_until(lambda: ready(url, process), 180)
        assert post(url, files[:2]).status_code == 401
        first = post(url, files[:2], headers=token).json()
        assert [item["error"] for item in first["items"]] == [None, None]
        assert f"0100007F:{int(url.rsplit(':', 1)[1]):04X}" in Path("/proc/net/tcp").read_text()
        odd = requests.get(
            f"{url}/healthz", headers={"x-request-id": b"\xff\xfe", "x-request-timeout-seconds": "nan"}, timeout=20
        )
        assert odd.status_code == 200
        assert odd.headers["x-request-id"].isascii()
        # As after another run with another method, the marker names another model.
        marker = json.loads((output / "_stages/train.json").read_text())
        make_model(run, output / "model/other", {"name": "tac", "trained": False})
        (output / "_stages/train.json").write_text(
            json.dumps({**marker, "path": "model/other", "fingerprint": "other"})
        )
        wait_until(lambda: requests.get(f"{url}/v1/model", headers=token, timeout=120).json()["method"] == "tac")
        assert post(url, files[:2], headers=token).json()["model"] != first["model"]
        process.send_signal(signal.SIGTERM)
        stdout, _ = process.communicate(timeout=60)
        assert process.returncode == 0
    assert json.loads(stdout) == {"command": "serve", "status": "ok", "url": url, "model": str(output)}
    assert f"answers at {url}" in log.read_text()
    assert "Traceback" not in log.read_text()
