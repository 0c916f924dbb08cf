"""One run at a time: `_lock.json` in the run folder, created by one conditional write and kept alive by a heartbeat.

Every write of the file is conditional on its last content, so a holder whose lock was taken notices at its next heartbeat, and of several
runs that find a dead holder one takes over. Who finds a lock and does not know its holder to be dead watches it on the own clock: clocks of
two hosts are never compared.
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
from raycluster.storage import Location

log = logging.getLogger(__name__)

LOCK_FILE = "_lock.json"
HEARTBEAT = 10.0
"""Seconds between two signs of life."""
DEAD_AFTER = 60.0
"""Seconds without a sign of life after which a holder counts as dead."""
LOOK = 1.0
"""Seconds between two looks at another's lock."""
LENGTH = 512
"""Bytes of the file, always: it is written in place."""


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
        """Wait until the lock is taken, or raise :class:`RayclusterError` naming a holder that lives."""
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
        """Write a sign of life; raises :class:`LockLostError` if the lock is another's, and :class:`OSError` if the storage fails."""
        with self._mutex:
            if not self._lost and not self._swapped(self._content):
                seen = _read(self._file)
                # The storage may refuse a write for another reason; then the next heartbeat tries again.
                self._lost = not self._mine(seen)
            if self._lost:
                raise LockLostError(
                    f"{self._file.parent.uri} was taken by another run while this one gave no sign of life; "
                    "this one has stopped, look at the other"
                )

    @property
    def lost(self) -> bool:
        """Whether another run is known to have it."""
        return self._lost

    def check(self) -> None:
        """Raise :class:`LockLostError` if another run has the lock. Costs a request only after a time without signs of life."""
        silent = time.monotonic() - self._confirmed
        if self._lost or silent > 2 * HEARTBEAT:
            try:
                self.confirm()
            except OSError as error:
                if silent > DEAD_AFTER:
                    raise RayclusterError(
                        f"{self._file.uri} could not be written for {silent:.0f} s ({error}), and another run may take it; "
                        "run the command again when the storage answers, finished work is kept"
                    ) from error

    def release(self) -> None:
        """Delete the file, if it is still this process's."""
        try:
            if self._mine(_read(self._file)):
                # A fresh sign of life: nobody takes the lock between this and the deletion.
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
        # A request whose answer was lost is sent again, and then finds its own result.
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
    """Hold the lock of a run folder; raises :class:`RayclusterError` naming a live holder.

    `on_loss` is called in a thread when another run has taken the lock.
    """
    lock, stop = Lock(folder / LOCK_FILE), threading.Event()
    beats = threading.Thread(target=_beat, args=(lock, stop, on_loss), name="run-lock", daemon=True)
    # Ctrl-C may come at any line.
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
            # The storage may be back at the next beat; whether the run can go on without it, its stages find out.
            log.warning("no sign of life written to the run's lock: %s", error)


def _refuse_if_alive(file: Location, seen: bytes) -> None:
    """Watch another's lock until it is sure that it gives no more signs of life; raises :class:`RayclusterError` when it gives one."""
    holder, began = _parsed(seen), time.monotonic()
    same = holder.get("machine") is not None and holder.get("machine") == _machine()
    # One machine has one clock, so there a sign of life has an age.
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
    """Whether the holder was a process of this machine that no longer exists."""
    holder = _parsed(seen)
    if holder.get("machine") is None or holder["machine"] != _machine():
        return False
    # Ids are used again; the time at which a process began tells it from a later one.
    return _started(int(holder["pid"])) != holder["started"]


def _machine() -> str | None:
    """What tells this machine, its boot and (in a container) its set of process ids from all others; None where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process of this machine began, in ticks since the boot; None if there is none, or it is dead and not yet buried."""
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
    """What the file says; nothing of one that is being created this moment, or was written by something else."""
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}
