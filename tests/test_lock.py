from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from raycluster import lock
from raycluster.errors import RayclusterError
from raycluster.storage import locate


def test_a_live_holder_is_refused_by_name(tmp_path: Path) -> None:
    folder = locate(str(tmp_path))
    with lock.held(folder), pytest.raises(RayclusterError, match=f"process {os.getpid()} on"), lock.held(folder):
        pass
    assert not (tmp_path / "_lock.json").exists()


def test_a_dead_process_on_this_host_is_taken_over_at_once(tmp_path: Path) -> None:
    code = f"from raycluster import lock, storage; import os; h = lock.held(storage.locate({str(tmp_path)!r})); h.__enter__(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert (tmp_path / "_lock.json").exists()
    with lock.held(locate(str(tmp_path))):
        assert json.loads((tmp_path / "_lock.json").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(("silent", "taken"), [(30, False), (90, True)])
def test_another_host_is_dead_after_a_minute_of_silence(tmp_path: Path, silent: float, taken: bool) -> None:
    token = {"host": "elsewhere", "pid": 1, "job": None, "since": 0.0, "heartbeat": time.time() - silent}
    (tmp_path / "_lock.json").write_text(json.dumps(token))
    if taken:
        with lock.held(locate(str(tmp_path))):
            pass
    else:
        with pytest.raises(RayclusterError, match="on elsewhere"), lock.held(locate(str(tmp_path))):
            pass


def test_of_many_racing_runs_one_gets_the_lock(tmp_path: Path) -> None:
    file, wins = locate(str(tmp_path)) / "_lock.json", []
    threads = [threading.Thread(target=lambda n=n: wins.append(file.create(str(n).encode()))) for n in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(wins) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["_lock.json"]


def test_of_many_runs_that_find_a_dead_one_each_time_one_takes_over(tmp_path: Path) -> None:
    file = locate(str(tmp_path)) / "_lock.json"
    for since in range(20):
        file.write_json({"host": "elsewhere", "pid": 1, "job": None, "since": float(since), "heartbeat": 0.0})
        won: list[int] = []

        def take(number: int, won: list[int] = won) -> None:
            token = {"host": "here", "pid": number, "job": None, "since": 0.0}
            try:
                lock._take(file, token)
            except RayclusterError:
                return
            won.append(number)

        threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert file.read_json()["pid"] == won[0]
        assert [path.name for path in tmp_path.iterdir()] == ["_lock.json"]


def test_a_claim_that_was_left_behind_goes_after_a_minute(tmp_path: Path) -> None:
    folder = locate(str(tmp_path))
    (folder / "_lock.json").write_json({"host": "elsewhere", "pid": 1, "job": None, "since": 0.0, "heartbeat": 0.0})
    (folder / "_lock_claim.json").write_json({"at": time.time() - 90})
    with pytest.raises(RayclusterError, match="being taken over by another run"), lock.held(folder):
        pass
    with lock.held(folder):
        assert not (tmp_path / "_lock_claim.json").exists()


def test_a_storage_that_is_away_for_a_beat_does_not_end_the_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)
    folder = locate(str(tmp_path / "run"))
    with lock.held(folder):
        (tmp_path / "run").rename(tmp_path / "away")
        (tmp_path / "run").write_text("no folder")  # every read and write fails
        time.sleep(0.3)
        (tmp_path / "run").unlink()
        (tmp_path / "away").rename(tmp_path / "run")
        before = (folder / "_lock.json").read_json()["heartbeat"]
        time.sleep(0.3)
        assert (folder / "_lock.json").read_json()["heartbeat"] > before
