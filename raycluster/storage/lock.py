"""One run at a time: `_lock.json` in the run folder, created by one conditional write and kept alive by a heartbeat.

Every write of the file is conditional on its last content. So a holder notices at its next heartbeat that its lock was taken, and only one
of several runs that find a dead holder takes over. A run that finds a lock, and does not know that its holder is dead, watches the lock by
its own clock: clocks of two hosts are never compared.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raycluster.errors import RayclusterError
from raycluster.storage.location import Location

log = logging.getLogger(__name__)

LOCK_FILE = "_lock.json"
HEARTBEAT = 10.0
"""Seconds between two signs of life."""
DEAD_AFTER = 60.0
"""Seconds without a sign of life after which a holder counts as dead."""
LOOK = 1.0
"""Seconds between two reads of a lock that another run holds."""
LENGTH = 512
"""Size of the file in bytes. It never changes, because the file is overwritten in place."""


class LockLostError(RayclusterError):
    """Another run has taken the lock, so this one must not write any more (exit code 1)."""


class Lock:
    """The lock of a run folder, held by this process."""

    def __init__(self, file: Location) -> None:
        self._file = file
        self._owner = {
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "job": os.environ.get("RAY_JOB_ID"),
            "since": time.time(),
        }
        self._content, self._confirmed = self._record(), time.monotonic()
        self._mutex, self._lost = threading.Lock(), False

    def take(self) -> None:
        """Take the lock, if necessary after a wait; raises :class:`RayclusterError` that names a live holder."""
        while not self._created():
            if (seen := _read(self._file)) is None:
                time.sleep(LOOK / 10)
                continue
            if not _known_dead(seen):
                _refuse_if_alive(self._file, seen)
            if self._swapped(seen):
                log.warning("taking over %s from %s, which is gone", self._file.uri, _named(seen))
                return

    def confirm(self) -> None:
        """Write a sign of life; raises :class:`LockLostError` if another run has the lock, and :class:`OSError` if the storage fails."""
        with self._mutex:
            if not self._lost and not self._swapped(self._content):
                seen = _read(self._file)
                # The storage may refuse a write for another reason; then the next heartbeat tries again.
                self._lost = not self._mine(seen)
            if self._lost:
                raise LockLostError(
                    f"{self._file.parent.uri} was taken by another run while this run gave no sign of life; "
                    "this run has stopped, so look at the other one"
                )

    @property
    def lost(self) -> bool:
        """Whether this process knows that another run has taken the lock."""
        return self._lost

    def check(self) -> None:
        """Raise :class:`LockLostError` if another run has the lock. Sends a request only if the last sign of life is overdue."""
        silent = time.monotonic() - self._confirmed
        if self._lost or silent > 2 * HEARTBEAT:
            try:
                self.confirm()
            except OSError as error:
                if silent > DEAD_AFTER:
                    raise RayclusterError(
                        f"{self._file.uri} could not be written for {silent:.0f} s ({error}), and another run may take it; "
                        "run the command again when the storage answers: finished work is kept"
                    ) from error

    def release(self) -> None:
        """Delete the file if this process still holds the lock."""
        try:
            if self._mine(_read(self._file)):
                # After a fresh sign of life, nobody takes the lock before it is deleted.
                self.confirm()
                self._file.delete()
        except LockLostError as error:
            log.error("%s", error)
        except OSError as error:
            log.warning(
                "%s could not be deleted (%s); the next run waits a minute and takes it over", self._file.uri, error
            )

    def _mine(self, seen: bytes | None) -> bool:
        return seen is not None and _parsed(seen).get("id") == self._owner["id"]

    def _created(self) -> bool:
        record, now = self._record(), time.monotonic()
        # If the answer to a request was lost, the client sends it again, and it then finds its own result.
        if not self._file.create(record) and _read(self._file) != record:
            return False
        self._content, self._confirmed = record, now
        return True

    def _swapped(self, old: bytes) -> bool:
        record, now = self._record(), time.monotonic()
        if not self._file.swap(old, record):
            return False
        self._content, self._confirmed = record, now
        return True

    def _record(self) -> bytes:
        return json.dumps({**self._owner, "beat": time.monotonic()}).encode().ljust(LENGTH)


@contextmanager
def held(folder: Location, on_loss: Callable[[], None] = lambda: None) -> Iterator[Lock]:
    """Context that holds the lock of a run folder; raises :class:`RayclusterError` that names a live holder.

    `on_loss` is called in a thread when another run has taken the lock.
    """
    lock, stop = Lock(folder / LOCK_FILE), threading.Event()
    beats = threading.Thread(target=_beat, args=(lock, stop, on_loss), name="run-lock", daemon=True)
    # Ctrl-C may come at any line, so even taking the lock is inside `try`.
    try:
        lock.take()
        beats.start()
        yield lock
    finally:
        stop.set()
        if beats.ident is not None:
            beats.join()
        lock.release()


def _beat(lock: Lock, stop: threading.Event, on_loss: Callable[[], None]) -> None:
    while not stop.wait(HEARTBEAT):
        try:
            lock.confirm()
        except LockLostError as error:
            log.error("%s", error)
            on_loss()
            return
        except OSError as error:
            # The storage may be back at the next heartbeat. The stages find out whether the run can go on without it.
            log.warning("the run's lock could not be written (%s); the next heartbeat tries again", error)


def _refuse_if_alive(file: Location, seen: bytes) -> None:
    """Watch another run's lock until its holder counts as dead; raises :class:`RayclusterError` if it gives a sign of life."""
    holder, began = _parsed(seen), time.monotonic()
    same = holder.get("machine") is not None and holder.get("machine") == _machine()
    # Processes of one machine share a clock, so the age of the last sign of life is known.
    if not same or time.monotonic() - holder["beat"] > 2 * HEARTBEAT:
        log.info("%s is held by %s; watching for a sign of life for up to %.0f s", file.uri, _named(seen), DEAD_AFTER)
        while _read(file) == seen:
            if time.monotonic() - began > DEAD_AFTER:
                return
            time.sleep(LOOK)
        if _read(file) is None:
            return
    raise RayclusterError(
        f"{file.parent.uri} is in use by {_named(seen)}, which is alive; wait for it, stop it, or choose another `output`"
    )


def _known_dead(seen: bytes) -> bool:
    """Return whether the holder was a process of this machine that no longer exists."""
    holder = _parsed(seen)
    if holder.get("machine") is None or holder["machine"] != _machine():
        return False
    # Process ids are reused. The start time tells a process from a later one with the same id.
    return _started(int(holder["pid"])) != holder["started"]


def _machine() -> str | None:
    """Return an id of this machine, its boot and (in a container) its process id namespace; None where the system does not give one."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """Return when a process of this machine began, in ticks since the boot; None if there is none, or it is a zombie."""
    try:
        state, *facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else facts[18]


def _named(seen: bytes) -> str:
    holder = _parsed(seen)
    return f"process {holder['pid']} on {holder['host']}" if "pid" in holder else "another run"


def _read(file: Location) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _parsed(content: bytes) -> dict[str, Any]:
    """Return the content of the lock file; an empty dict if it is just being created, or was written by another program."""
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}
