"""Test the lock of a run folder: one run at a time holds it, and the lock of a dead run is taken over."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raycluster.config import StorageConfig
from raycluster.errors import RayclusterError
from raycluster.storage import lock
from raycluster.storage.location import Location, locate

TAKE_AND = "from raycluster.storage import location, lock; import os, sys, time; h = lock.held(location.locate(sys.argv[1])); l = h.__enter__(); "


def holder(folder: Path, then: str) -> subprocess.Popen[bytes]:
    """A process that has taken the lock of the folder and does `then`."""
    run = subprocess.Popen([sys.executable, "-c", TAKE_AND + then, str(folder)], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (folder / "_lock.json").exists() and run.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return run


def foreign(**fields: Any) -> dict[str, Any]:
    """A lock that a process of another machine left."""
    return {"id": "a", "host": "elsewhere", "machine": "another", "pid": 1, "started": "1", "since": 0.0, **fields}


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the times of the lock: a silent run counts as dead after a second and not after a minute."""
    monkeypatch.setattr(lock, "HEARTBEAT", 0.1)
    monkeypatch.setattr(lock, "DEAD_AFTER", 1.0)
    monkeypatch.setattr(lock, "LOOK", 0.02)


def test_a_live_holder_is_refused_by_name_at_once(tmp_path: Path) -> None:
    folder, started = locate(str(tmp_path)), time.monotonic()
    with lock.held(folder), pytest.raises(RayclusterError, match=f"process {os.getpid()} on"), lock.held(folder):
        pass
    assert time.monotonic() - started < lock.HEARTBEAT
    assert not (tmp_path / "_lock.json").exists()


def test_a_dead_process_on_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    assert holder(tmp_path, "os._exit(9)").wait(60) == 9
    assert (tmp_path / "_lock.json").exists()
    started = time.monotonic()
    with lock.held(locate(str(tmp_path))):
        assert json.loads((tmp_path / "_lock.json").read_text())["pid"] == os.getpid()
    assert time.monotonic() - started < lock.HEARTBEAT


def test_a_killed_process_that_nobody_has_waited_for_is_dead_too(tmp_path: Path) -> None:
    run = holder(tmp_path, "time.sleep(600)")
    run.kill()
    os.waitid(os.P_PID, run.pid, os.WEXITED | os.WNOWAIT)  # leaves it a zombie
    with lock.held(locate(str(tmp_path))):
        pass
    run.wait(60)


def test_a_process_that_has_got_the_id_of_the_dead_one_does_not_keep_its_lock(tmp_path: Path) -> None:
    holder(tmp_path, "os._exit(9)").wait(60)
    file = tmp_path / "_lock.json"
    left = json.loads(file.read_text())
    file.write_text(json.dumps({**left, "pid": os.getpid()}))
    with lock.held(locate(str(tmp_path))):
        pass


def test_a_container_with_the_same_host_name_is_another_machine(tmp_path: Path, fast: None) -> None:
    # The ids of its processes are not ours. Its monotonic clock is that of the same kernel, but nobody relies on it.
    record = foreign(host=socket.gethostname(), machine=f"{lock._machine()}x", pid=2**22 + 1)
    (tmp_path / "_lock.json").write_text(json.dumps(record))
    started = time.monotonic()
    with lock.held(locate(str(tmp_path))):
        assert time.monotonic() - started > lock.DEAD_AFTER


@pytest.mark.parametrize("clock", [0.0, 1e12])
def test_another_host_is_dead_after_it_was_seen_silent_whatever_its_clock_says(
    tmp_path: Path, fast: None, clock: float, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "_lock.json").write_text(json.dumps(foreign(beat=clock, heartbeat=clock)))
    started = time.monotonic()
    with caplog.at_level("INFO"), lock.held(locate(str(tmp_path))):
        assert time.monotonic() - started > lock.DEAD_AFTER
    assert sum("watching for a sign of life" in record.message for record in caplog.records) == 1


def test_another_host_that_gives_a_sign_of_life_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LOOK", 0.02)
    file = tmp_path / "_lock.json"
    file.write_text(json.dumps(foreign(beat=0.0)))
    timer = threading.Timer(0.5, lambda: file.write_text(json.dumps(foreign(beat=10.0))))
    timer.start()
    with (
        pytest.raises(RayclusterError, match="process 1 on elsewhere, which is alive"),
        lock.held(locate(str(tmp_path))),
    ):
        pass
    timer.join()


def test_a_lock_that_was_never_written_is_taken_over(tmp_path: Path, fast: None) -> None:
    (tmp_path / "_lock.json").touch()  # its writer died between creating and writing it
    with lock.held(locate(str(tmp_path))):
        assert json.loads((tmp_path / "_lock.json").read_text())["pid"] == os.getpid()


def race(take: Callable[[int], bool], count: int) -> list[int]:
    """Call `take` with the numbers below `count`, all at the same time; return the numbers for which it gave True."""
    start, won = threading.Barrier(count), []

    def one(number: int) -> None:
        start.wait()
        if take(number):
            won.append(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder in either kind of storage."""
    if request.param == "local":
        return locate(str(tmp_path / "folder"))
    storage: StorageConfig = request.getfixturevalue("s3")
    return locate(f"s3://raycluster-test/{tmp_path.name}-{time.monotonic_ns()}", storage)


def test_of_many_racing_writers_one_creates_the_file(folder: Location) -> None:
    file = folder / "file"
    won = race(lambda number: file.create(str(number).encode()), 8)
    assert len(won) == 1
    assert file.read_bytes() == str(won[0]).encode()
    assert [each.name for each in folder.list()] == ["file"]


def test_of_many_racing_processes_one_creates_the_file(tmp_path: Path) -> None:
    code = (
        "import sys; from raycluster.storage.location import locate; sys.stdin.read(1); "
        "print(locate(sys.argv[1]).create(sys.argv[2].encode()))"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "file"), str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for n in range(4)
    ]
    found = [run.communicate(b"x", timeout=60)[0].strip() for run in started]
    assert sorted(found) == [b"False", b"False", b"False", b"True"]


def test_of_many_racing_writers_one_swaps_the_content(folder: Location) -> None:
    file = folder / "file"
    assert not file.swap(b"", b"absent")
    file.create(b"first")
    won = race(lambda number: file.swap(b"first", f"by {number:02}".encode()), 8)
    assert len(won) == 1
    assert file.read_bytes() == f"by {won[0]:02}".encode()


def test_of_many_runs_that_find_a_dead_one_one_takes_over(
    folder: Location, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 60.0)  # the winner writes no heartbeat here
    (folder / "_lock.json").write_json(foreign(beat=0.0))

    def take(number: int) -> bool:
        try:
            lock.Lock(folder / "_lock.json").take()
        except RayclusterError:
            return False
        return True

    assert len(race(take, 6)) == 1
    assert [each.name for each in folder.list()] == ["_lock.json"]


def test_a_holder_whose_lock_was_taken_notices_and_leaves_the_others_lock_alone(folder: Location, fast: None) -> None:
    told = threading.Event()
    with lock.held(folder, on_loss=told.set) as mine:
        mine.check()
        other = lock.Lock(folder / "_lock.json")
        while not other._swapped((folder / "_lock.json").read_bytes()):
            pass
        assert told.wait(60)
        with pytest.raises(lock.LockLostError, match="was taken by another run"):
            mine.check()
    other.confirm()


def test_a_process_that_hung_finds_its_lock_taken_when_it_wakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = "lock.HEARTBEAT = 1\ntry:\n while True: l.check(); time.sleep(0.1)\nexcept lock.LockLostError: print('stopped')\nos._exit(0)"
    run = holder(tmp_path, looks)
    run.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(lock, "DEAD_AFTER", 2.0)
    monkeypatch.setattr(lock, "HEARTBEAT", 0.5)
    time.sleep(1.5)  # the last sign of life is no longer fresh
    started = time.monotonic()
    with lock.held(locate(str(tmp_path))):
        run.send_signal(signal.SIGCONT)
        assert run.communicate(timeout=60)[0].strip() == b"stopped"
        assert json.loads((tmp_path / "_lock.json").read_text())["pid"] == os.getpid()
    assert time.monotonic() - started > 2.0


def test_a_storage_that_is_away_for_a_beat_does_not_end_the_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.1)
    folder = locate(str(tmp_path / "run"))
    with lock.held(folder) as mine:
        (tmp_path / "run").rename(tmp_path / "away")
        (tmp_path / "run").write_text("no folder")  # every read and write fails
        time.sleep(0.5)
        mine.check()  # no error yet: the storage may be back before another run could have taken the lock
        with monkeypatch.context() as later:
            later.setattr(lock, "DEAD_AFTER", 0.3)
            with pytest.raises(RayclusterError, match="could not be written for"):
                mine.check()
        (tmp_path / "run").unlink()
        (tmp_path / "away").rename(tmp_path / "run")
        before, deadline = (folder / "_lock.json").read_json()["beat"], time.monotonic() + 60
        while (folder / "_lock.json").read_json()["beat"] == before:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        mine.check()


def test_storage_without_hard_links_has_a_lock_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # as exFAT, SMB and gcsfuse answer

    monkeypatch.setattr(os, "link", link)
    folder = locate(str(tmp_path))
    with lock.held(folder), pytest.raises(RayclusterError, match="is in use by"), lock.held(folder):
        pass
    assert list(tmp_path.iterdir()) == []


def test_storage_without_file_locks_has_a_lock_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")  # as a Lustre mounted without `flock` answers

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.held(locate(str(tmp_path))) as mine:
        mine.confirm()
    assert list(tmp_path.iterdir()) == []
