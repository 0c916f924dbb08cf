"""Test that all work in Ray ends: when its iterator is closed, when a part of it fails, and when its run ends or must stop."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
import ray.cloudpickle
import ray.data
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray_workers import wait_for_free_cores

from raycluster.compute import work
from raycluster.compute.node_checks import ALONE
from raycluster.compute.resources import Resources
from raycluster.compute.streaming import streaming
from raycluster.compute.tasks import map_tasks, one_task
from raycluster.errors import DataQualityError, RayclusterError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(240)]

# Ray's processes cannot import this module, so its functions travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

LONG_S = 60.0
ONE_CORE = Resources(1, 1, 0, encoder_actors=1, train_workers=1)


def slow(item: int, folder: str) -> int:
    """Item 0 is done at once, and item 1 fails soon after. The others work for a minute and ignore every KeyboardInterrupt."""
    place = Path(folder)
    (place / f"alive-{item}").touch()
    if item == 0:
        return item
    begin = time.monotonic()
    while time.monotonic() - begin < (0.5 if item == 1 else LONG_S):
        try:
            (place / f"alive-{item}").touch()
            time.sleep(0.02)
        except KeyboardInterrupt:
            continue
    if item == 1:
        raise DataQualityError("one of them fails")
    (place / f"written-{item}").touch()
    return item


def begun(folder: Path, *items: int) -> None:
    """Wait until the work on these items has begun."""
    while not all((folder / f"alive-{item}").exists() for item in items):
        time.sleep(0.02)


def check_ended(folder: Path) -> None:
    """Check that no item is being worked on any more, and that no long item was finished."""
    before = [path.stat().st_mtime_ns for path in sorted(folder.glob("alive-*"))]
    time.sleep(1)
    assert [path.stat().st_mtime_ns for path in sorted(folder.glob("alive-*"))] == before
    assert not list(folder.glob("written-*"))


def tasks(items: list[int], folder: Path) -> Iterator[int]:
    return map_tasks(lambda item: slow(item, str(folder)), items, common=ALONE, demand={"num_cpus": 0.1})


def test_closing_the_iterator_ends_the_tasks(tmp_path: Path) -> None:
    results = tasks([0, 2, 3], tmp_path)
    assert next(results) == 0
    begun(tmp_path, 2, 3)
    results.close()  # type: ignore[attr-defined]
    check_ended(tmp_path)


def test_when_one_task_fails_the_others_have_ended_before_anybody_hears_of_it(tmp_path: Path) -> None:
    with pytest.raises(DataQualityError, match="one of them fails"):
        list(tasks([2, 1], tmp_path))
    check_ended(tmp_path)


def test_at_the_end_of_a_run_nothing_goes_on_even_if_somebody_keeps_the_iterator(tmp_path: Path) -> None:
    going = work.Work()
    with work.of_run(going, lambda: None):
        results = tasks([0, 2], tmp_path)
        assert next(results) == 0
        begun(tmp_path, 2)
    check_ended(tmp_path)
    del results


def test_ending_again_and_again_is_safe(tmp_path: Path) -> None:
    # Ray aborts the process if a task ends while it is cancelled for the second time.
    for turn in range(5):
        folder = tmp_path / str(turn)
        folder.mkdir()
        going = work.Work()
        with work.of_run(going, lambda: None):
            results = tasks([0, 2], folder)
            next(results)
            going.end()
            going.end()
        results.close()  # type: ignore[attr-defined]
    assert not list(tmp_path.glob("*/written-*"))


@pytest.mark.parametrize("kind", ["tasks", "one task"])
def test_a_run_that_must_stop_stops_its_tasks_while_it_waits_for_them(kind: str, tmp_path: Path) -> None:
    def may_go_on() -> None:
        if (tmp_path / "alive-2").exists():
            raise RayclusterError("the lock is lost")

    def wait() -> None:
        if kind == "tasks":
            list(tasks([2], tmp_path))
        else:
            one_task(lambda: slow(2, str(tmp_path)), ONE_CORE)

    with pytest.raises(RayclusterError, match="the lock is lost"), work.of_run(work.Work(), may_go_on):
        wait()
    check_ended(tmp_path)


def stream(folder: Path, actor: bool, concurrency: int | None = None) -> Iterator[Any]:
    """Run Ray Data over the items 0, 2 and 3: perhaps in an actor first, then in tasks that write, at most `concurrency` at a time."""

    class Passes:
        def __call__(self, block: pa.Table) -> pa.Table:
            return block

    def write(block: pa.Table) -> pa.Table:
        slow(block.column("item")[0].as_py(), str(folder))
        return block

    with streaming(2**27):
        rows = ray.data.from_arrow([pa.table({"item": [item]}) for item in (0, 2, 3)])
        if actor:
            rows = rows.map_batches(
                Passes, compute=ray.data.ActorPoolStrategy(size=1), batch_format="pyarrow", num_cpus=0.1
            )
        yield from rows.map_batches(write, batch_format="pyarrow", num_cpus=0.2, concurrency=concurrency).iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        )


OTHER_ENDS = [("closed", True), ("run ended", False), ("ended from outside", True)]


def test_a_task_whose_result_is_there_is_not_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray aborts the driver if a task is cancelled at the moment when it completes."""
    told: list[object] = []
    monkeypatch.setattr(ray, "cancel", lambda *given, **_: told.append(given))
    assert one_task(lambda: 5, ONE_CORE) == 5
    complete = ray.remote(lambda: 6).remote()
    ray.wait([complete])
    work.Tasks(complete).end()
    assert told == []


@pytest.mark.parametrize(
    ("end", "actor"),
    [
        ("closed", False),
        ("run ended", True),
        ("ended from outside", False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHER_ENDS),
    ],
)
def test_an_execution_of_ray_data_that_is_given_up_has_ended(end: str, actor: bool, tmp_path: Path) -> None:
    going = work.Work()
    stopped: list[bool] = []

    def may_go_on() -> None:
        if stopped:
            raise RayclusterError("must stop")

    def use(results: Iterator[Any]) -> None:
        next(results)
        begun(tmp_path, 2, 3)
        if end == "closed":
            results.close()  # type: ignore[attr-defined]
        elif end == "ended from outside":
            stopped.append(True)
            going.end()
            with pytest.raises(RayclusterError, match="must stop"):
                list(results)

    results = stream(tmp_path, actor)
    with work.of_run(going, may_go_on):
        use(results)
    check_ended(tmp_path)
    wait_for_free_cores()  # even while something keeps the iterator, as a traceback does
    del results


def test_no_task_is_started_after_the_end_even_if_ray_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself waits only two seconds for the thread that starts tasks."""
    step, slow_now = StreamingExecutor._scheduling_loop_step, threading.Event()

    def slow_step(executor: StreamingExecutor, topology: Any) -> bool:
        if slow_now.is_set():
            time.sleep(3)
        return step(executor, topology)

    monkeypatch.setattr(StreamingExecutor, "_scheduling_loop_step", slow_step)
    results = stream(tmp_path, actor=False, concurrency=1)
    next(results)
    begun(tmp_path, 2)
    slow_now.set()
    time.sleep(0.5)
    results.close()  # type: ignore[attr-defined]
    time.sleep(3.5)
    check_ended(tmp_path)
    assert not (tmp_path / "alive-3").exists()


def test_when_a_block_fails_the_other_writers_have_ended(tmp_path: Path) -> None:
    def write(block: pa.Table) -> pa.Table:
        slow(block.column("item")[0].as_py(), str(tmp_path))
        return block

    def run() -> None:
        with streaming(2**27):
            rows = ray.data.from_arrow([pa.table({"item": [item]}) for item in (2, 1)])
            rows.map_batches(write, batch_format="pyarrow", num_cpus=0.2).materialize()

    with pytest.raises(Exception, match="one of them fails"):
        run()
    wait_for_free_cores()
    check_ended(tmp_path)
