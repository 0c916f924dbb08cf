"""One run at a time: `_lock.json` in the run folder, taken by one conditional write and kept alive by a heartbeat."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raycluster.errors import RayclusterError
from raycluster.storage import Location

log = logging.getLogger(__name__)

HEARTBEAT = 10.0
"""Seconds between two signs of life."""
DEAD_AFTER = 60.0
"""A holder on another host that has been silent this long, in seconds, is dead."""


@contextmanager
def held(folder: Location) -> Iterator[None]:
    """Hold the lock of a run folder; raises :class:`RayclusterError` naming a live holder."""
    file = folder / "_lock.json"
    token = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("RAY_JOB_ID"),
        "since": time.time(),
    }
    _take(file, token)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(file, token, stop), name="run-lock", daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        if _mine(_read(file), token):
            file.delete()


def _take(file: Location, token: dict[str, Any]) -> None:
    if file.create(_record(token)):
        return
    holder = _refuse_live(file)
    if holder is not None:
        _take_over(file, holder)
    if not file.create(_record(token)):
        raise RayclusterError(f"{file.parent.uri} was taken by another run this moment; wait for it")


def _refuse_live(file: Location) -> dict[str, Any] | None:
    """The dead holder of the lock, None if it is free by now; raises for a live one."""
    holder = _read(file)
    if holder is not None and not _dead(holder):
        raise RayclusterError(
            f"{file.parent.uri} is in use by process {holder['pid']} on {holder['host']} (last sign of life "
            f"{time.time() - holder['heartbeat']:.0f} s ago); wait for it, stop it, or choose another `output`"
        )
    return holder


def _take_over(file: Location, holder: dict[str, Any]) -> None:
    """Remove a dead holder's lock; of several runs that find it, one does: the others would remove the first one's new lock."""
    claim = file.parent / "_lock_claim.json"
    if not claim.create(json.dumps({"at": time.time()}).encode()):
        if (other := _read(claim)) is not None and time.time() - other["at"] > DEAD_AFTER:
            claim.delete()
        raise RayclusterError(f"{file.parent.uri} is being taken over by another run; try again in a minute")
    try:
        if _refuse_live(file) is not None:
            log.warning("taking over %s from process %s on %s, which is gone", file.uri, holder["pid"], holder["host"])
            file.delete()
    finally:
        claim.delete()


def _dead(holder: dict[str, Any]) -> bool:
    if holder["host"] == socket.gethostname() and not _alive(int(holder["pid"])):
        return True
    return time.time() - float(holder["heartbeat"]) > DEAD_AFTER


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _beat(file: Location, token: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT):
        try:
            if not _mine(_read(file), token):
                log.error("%s was taken by another run while this one was silent; stop one of them", file.uri)
                return
            file.write_bytes(_record(token))
        except OSError as error:
            # The storage may be back at the next beat; whether the run can go on without it, its stages find out.
            log.warning("no sign of life written to %s: %s", file.uri, error)


def _record(token: dict[str, Any]) -> bytes:
    return json.dumps({**token, "heartbeat": time.time()}).encode()


def _read(file: Location) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        return None


def _mine(holder: dict[str, Any] | None, token: dict[str, Any]) -> bool:
    return holder is not None and all(holder.get(key) == value for key, value in token.items())
