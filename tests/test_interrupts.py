"""Test Ctrl-C and SIGTERM at any moment of a command: one line, one JSON line, the right exit code, and nothing goes on or is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray_workers import descendants

import raycluster
from raycluster.cli import main
from raycluster.compute import interrupts
from raycluster.demo.drawing import draw_dataset
from raycluster.storage import lock
from raycluster.storage.location import locate
from raycluster.tables.rows import row_ids

IMAGES = 320
LINE = "interrupted; run the command again: finished work is kept"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The configuration of a run with a stage of every kind. The tests add the output."""
    folder = tmp_path_factory.mktemp("pictures")
    draw_dataset(folder / "images", IMAGES, ("house", "fish", "tree", "star"), seed=5)
    (folder / "nouns.txt").write_text("house\nfish\ntree\nstar\ncar\ncup\n")
    return {
        "images": str(folder / "images"),
        "clusters": 4,
        "encoder": {"model": "builtin"},
        "vocabulary": {"source": str(folder / "nouns.txt"), "cache": str(folder / "cache")},
        "method": {"name": "dxmc", "epochs": 100, "batch_size": 64},
    }


def start(config: dict[str, Any], output: Path, log: Path) -> subprocess.Popen[str]:
    """`raycluster run` as a terminal starts it: in a process group of its own."""
    file = output.parent / "run.yaml"
    file.write_text(json.dumps({**config, "output": str(output)}))
    command = [sys.executable, "-m", "raycluster.cli", "run", "--config", str(file)]
    own = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with log.open("w") as stderr:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, env=own, text=True, start_new_session=True
        )


def until(run: subprocess.Popen[str], log: Path, there: Callable[[], object]) -> None:
    """Wait until `there` gives a true value, and fail if the command ends before."""
    deadline = time.monotonic() + 500
    while not there():
        assert run.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def trains(pid: int) -> bool:
    """Whether Ray Train's workers run below this process."""
    for each in descendants(pid):
        try:
            if b"RayTrainWorker" in Path(f"/proc/{each}/cmdline").read_bytes():
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue
    return False


def check_ended(run: subprocess.Popen[str], log: Path, output: Path, number: int) -> None:
    """Check that the command has said what it should, and has left nothing behind."""
    printed = run.communicate(timeout=120)[0]
    said = log.read_text()
    assert run.returncode == 128 + number, said
    lines = printed.splitlines()
    assert len(lines) == 1, printed
    assert json.loads(lines[0])["status"] == "interrupted"
    assert said.count(f"raycluster run: {LINE}\n") == 1
    assert "Traceback" not in said
    left = [path.name for path in output.rglob("*") if path.name.endswith(".tmp") or path.name.startswith("_")]
    assert set(left) <= {"_stages"}


@pytest.mark.torture
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_run_that_is_interrupted_at_its_beginning_and_twice_at_its_end_goes_on_at_the_next_call(
    config: dict[str, Any], tmp_path: Path
) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    run = start(config, output, log)
    until(run, log, (output / "_lock.json").exists)  # while Ray starts and pictures are listed
    os.killpg(run.pid, signal.SIGINT)
    check_ended(run, log, output, signal.SIGINT)

    run = start(config, output, log)
    until(run, log, lambda: "assign    running" in log.read_text())
    os.killpg(run.pid, signal.SIGINT)
    os.killpg(run.pid, signal.SIGINT)
    check_ended(run, log, output, signal.SIGINT)
    check_complete(start(config, output, log), log)


def check_complete(run: subprocess.Popen[str], log: Path) -> None:
    """Check that the command ends well, and that every image has one row."""
    result = json.loads(run.communicate(timeout=300)[0])
    assert (run.returncode, result["status"]) == (0, "ok"), log.read_text()
    ids = row_ids(locate(result["tables"]["embeddings"]).list(".parquet"))
    assert np.array_equal(np.sort(ids), np.arange(IMAGES))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_a_run_that_is_interrupted_while_it_embeds_and_trains_goes_on_at_the_next_call(
    config: dict[str, Any], tmp_path: Path
) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    run = start(config, output, log)
    until(run, log, lambda: list(output.glob("embeddings/*/part-*")))
    os.killpg(run.pid, signal.SIGINT)
    check_ended(run, log, output, signal.SIGINT)
    embedded = len(row_ids(locate(str(next(output.glob("embeddings/*")))).list(".parquet")))
    assert 0 < embedded < IMAGES
    assert not list(output.glob("_stages/embed.json"))

    run = start(config, output, log)
    until(run, log, lambda: trains(run.pid))
    run.terminate()  # as `ray job stop` does
    check_ended(run, log, output, signal.SIGTERM)
    assert not list(output.glob("_stages/train.json"))
    check_complete(start(config, output, log), log)


NOTEBOOK = """
import json, os, signal, sys, threading, time
from pathlib import Path
import ray
import raycluster
from raycluster.storage.location import locate
from raycluster.tables.rows import row_ids

config, output = json.loads(sys.argv[1]), Path(json.loads(sys.argv[1])["output"])

def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

def when(there):
    def wait():
        while not there():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=wait, daemon=True).start()

def files():
    return sorted((str(path), path.stat().st_mtime_ns) for path in output.rglob("*") if path.is_file())

def interrupted(there):
    global kept
    when(there)
    try:
        raycluster.run(config)
    except KeyboardInterrupt as error:
        assert type(error) is KeyboardInterrupt
        kept = error  # as a notebook keeps the last error, with all its frames
    else:
        raise AssertionError("not interrupted")
    assert handlers() == before
    assert not (output / "_lock.json").exists()
    left = files()
    time.sleep(4)
    assert files() == left, set(files()) ^ set(left)
    assert not [path for path, _ in left if path.endswith(".tmp")]

# As a notebook's kernel does. Python sets no handler if its parent ignored SIGINT, as pytest-xdist and background jobs of a shell do.
signal.signal(signal.SIGINT, signal.default_int_handler)
before = handlers()
interrupted(lambda: list(output.glob("training/*/*")))
result = raycluster.run(config)
assert handlers() == before
ids = row_ids(locate(result.tables["embeddings"]).list(".parquet"))
assert len(ids) == len(set(ids.tolist())), "rows twice"
print(len(ids))
"""


@pytest.mark.torture
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_in_a_notebook_an_interrupt_is_a_keyboard_interrupt_and_nothing_goes_on(
    config: dict[str, Any], tmp_path: Path
) -> None:
    given = json.dumps({**config, "output": str(tmp_path / "out")})
    own = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK, given], capture_output=True, text=True, timeout=500, env=own, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == str(IMAGES)


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("local_ray")
def test_a_run_whose_lock_is_taken_stops_and_writes_no_more(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.2)
    output = tmp_path / "out"
    other = lock.Lock(locate(str(output)) / "_lock.json")

    def take_it() -> None:
        while not list(output.glob("embeddings/*/part-*")):
            time.sleep(0.01)
        while not other._swapped((output / "_lock.json").read_bytes()):
            continue

    thread = threading.Thread(target=take_it)
    # There are so many pictures that some are not embedded yet when the loss is noticed, however busy the machine is.
    many = tmp_path / "many"
    many.mkdir()
    for number, picture in enumerate(sorted(Path(config["images"]).rglob("*.jpg")) * 10):
        (many / f"{number:05d}.jpg").symlink_to(picture)
    given = {**config, "images": str(many), "output": str(output), "resources": {"encoder_actors": 1}}
    thread.start()
    with pytest.raises(lock.LockLostError, match="was taken by another run"):
        raycluster.run(given)
    thread.join()
    written = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    time.sleep(3)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == written
    assert not (output / "_stages" / "embed.json").exists()
    other.confirm()


@pytest.fixture
def handler() -> Iterator[Callable[[Any], Any]]:
    """A function that sets the handler of SIGINT until the test ends. (pytest-xdist ignores SIGINT in its processes.)"""
    before = signal.getsignal(signal.SIGINT)
    yield lambda wanted: signal.signal(signal.SIGINT, wanted)
    signal.signal(signal.SIGINT, before)


def test_the_first_signal_is_raised_and_the_second_is_answered(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def told_twice() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(interrupts.Interrupted) as caught, interrupts.raised():
        told_twice()
    assert caught.value.number == signal.SIGTERM
    assert "already stopping" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_that_python_dropped_is_raised_at_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dropping:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    dropped: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)
    with interrupts.raised():
        Dropping()
        assert len(dropped) == 1
        with pytest.raises(interrupts.Interrupted):
            interrupts.check()


def test_in_a_program_a_dropped_interrupt_is_a_keyboard_interrupt_at_the_next_look_or_at_the_end(
    handler: Callable[[Any], Any],
) -> None:
    handler(signal.default_int_handler)

    def dropped(look: Callable[[], None]) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        look()

    for look in (interrupts.check, lambda: None):
        with pytest.raises(KeyboardInterrupt) as caught, interrupts.noticed():
            dropped(look)
        assert caught.type is KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    interrupts.check()


def test_a_program_that_handles_signals_itself_goes_on_doing_so(handler: Callable[[Any], Any]) -> None:
    seen: list[int] = []
    handler(lambda number, _: seen.append(number))
    with interrupts.noticed():
        signal.raise_signal(signal.SIGINT)
        interrupts.check()
    assert seen == [signal.SIGINT]


def test_a_command_without_stages_says_no_more_than_that(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("raycluster.cli.status", lambda *_: signal.raise_signal(signal.SIGINT))
    assert main(["status", str(tmp_path)]) == 130
    assert json.loads(capfd.readouterr().out) == {
        "command": "status",
        "status": "interrupted",
        "error": "interrupted",
    }
