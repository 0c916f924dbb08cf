"""Test the commands as a user types them, each in a process of its own that starts its own Ray."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import run_commands

from raycluster.demo.drawing import draw_dataset

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Options of a small run on 60 drawn pictures."""
    draw_dataset(tmp_path / "photos", 60, ("fish", "car", "star"), seed=12)
    (tmp_path / "nouns.txt").write_text("fish\ncar\nstar\ntree\ncup\nhouse\n")
    given = {
        "images": tmp_path / "photos",
        "output": tmp_path / "out",
        "clusters": 3,
        "encoder.model": "builtin",
        "vocabulary.source": tmp_path / "nouns.txt",
        "vocabulary.cache": tmp_path / "cache",
        "method.name": "kmeans",
        "resources.encoder_actors": 1,
    }
    return [str(word) for name, value in given.items() for word in (f"--{name}", value)]


def clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}


def run(*words: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "raycluster"), *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=clean_environment(), check=False
    )


LOADED = """
import sys
from raycluster.cli import main
try:
    main(sys.argv[1:])
finally:
    print(sorted({"torch", "ray", "open_clip", "sklearn"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["status", "--help"]])
def test_help_waits_for_no_large_library(words: list[str]) -> None:
    # The seconds are not measured, because a busy machine would exceed any limit.
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stderr.splitlines()[-1:] == ["[]"], done.stderr
    assert done.returncode == 0


def test_help_names_the_options() -> None:
    assert "--encoder.model" in run("run", "--help").stdout


@pytest.mark.parametrize(
    ("words", "message"), [(["fly"], "invalid choice"), (["run", "--colour", "3"], "unknown option --colour")]
)
def test_a_mistyped_command_line_is_exit_2(words: list[str], message: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert message in done.stderr


def test_what_is_printed_at_the_end_of_the_process_does_not_follow_the_result(tmp_path: Path) -> None:
    # Ray also prints at the end of the process, because it holds back messages that its processes repeat.
    late = "import atexit; atexit.register(print, 'last words'); from raycluster.cli import main; print('before'); main(['status', {!r}])"
    command = [sys.executable, "-c", late.format(str(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean_environment(), check=False)
    before, line = done.stdout.splitlines()
    assert before == "before"
    assert json.loads(line)["command"] == "status"
    assert "last words" in done.stderr


@pytest.mark.torture
@pytest.mark.ray
def test_a_killed_run_resumes_where_it_was(arguments: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [str(BIN / "raycluster"), "run", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=clean_environment(),
        start_new_session=True,
    )
    deadline = time.monotonic() + 150
    while not list((tmp_path / "out" / "embeddings").glob("*/part-*.parquet")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    parts = list((tmp_path / "out" / "embeddings").glob("*/part-*.parquet"))
    kept = run_commands.stamp(parts)
    assert not (tmp_path / "out" / "_stages" / "embed.json").exists()

    done = run("run", *arguments)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert result["status"] == "ok"
    assert result["command"] == "run"
    assert "\r" not in done.stderr  # no progress bar without a terminal
    run_commands.check_stamped(result["tables"]["embeddings"], kept)
    for table in ("embeddings", "assignments"):
        ids = pq.read_table(result["tables"][table])["row_id"].to_numpy()
        np.testing.assert_array_equal(np.sort(ids), np.arange(60))


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_submitted_job_is_the_same_call(arguments: list[str], tmp_path: Path) -> None:
    port, dashboard, agent, client = free_ports(4)
    environment = {**clean_environment(), "RAY_AUTH_MODE": "disabled"}
    ray = str(BIN / "ray")
    head = [
        ray,
        "start",
        "--head",
        f"--port={port}",
        "--num-cpus=2",
        f"--dashboard-port={dashboard}",
        # Another Ray on this machine may hold the default ports.
        f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}",
        f"--temp-dir=/tmp/rc{port}",
    ]
    subprocess.run(head, check=True, capture_output=True, timeout=90, env=environment)
    try:
        submit = [ray, "job", "submit", "--address", f"http://127.0.0.1:{dashboard}", "--working-dir", str(ROOT)]
        job = [*submit, "--", sys.executable, "jobs/run.py", *arguments]
        done = subprocess.run(job, capture_output=True, text=True, timeout=300, env=environment, check=False)
        deadline = time.monotonic() + 150
        while "No available agent" in done.stderr + done.stdout and time.monotonic() < deadline:
            time.sleep(2)  # the head answers before its job agent is up
            done = subprocess.run(job, capture_output=True, text=True, timeout=300, env=environment, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        result = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
        assert result["stages"]["assign"] == {**result["stages"]["assign"], "state": "ran", "rows": 60}
    finally:
        # `ray stop` would stop every Ray of this machine.
        subprocess.run(["pkill", "-KILL", "-f", f"/tmp/rc{port}"], check=False)
    assert (tmp_path / "out" / "run.json").exists()
