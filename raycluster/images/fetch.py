"""Read the bytes of pictures. What is wrong with one of them becomes its status; with the storage, an error.

The line between the two decides whether a run can be trusted: a status is final (the row is never read again), so
only errors known to be permanent become one. Everything else is retried, and then ends the task with StorageError.
"""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError, RayclusterError
from raycluster.storage import Location, locate
from raycluster.tables import Status

TRIES = 5
PATIENCE_S = 30.0
"""No new try begins later than this after the first one."""
FETCH_THREADS = 8
"""Concurrent reads of one task; fetching waits, it does not compute."""
MAX_S3_KEY = 1024
"""Longest key S3 allows, in bytes of UTF-8."""

T = TypeVar("T")


class StorageError(RayclusterError):
    """The storage did not answer, or the credentials died; retried before it is raised (exit code 1)."""


@dataclass(frozen=True)
class Fetched:
    """The bytes of one picture (status `ok`), or why there are none."""

    data: bytes | None
    status: Status = "ok"
    error: str | None = None


def fetch(
    uri: str,
    storage: StorageConfig,
    max_bytes: int,
    expected_size: int | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Fetched:
    """Read one object.

    Parameters
    ----------
    max_bytes
        Larger objects get the status `too_large`; not a byte of them is read.
    expected_size
        Bytes according to the manifest; an object of another size gets the status `changed`.
    sleep
        Waits between tries, given seconds.

    Raises
    ------
    StorageError
        The object could neither be read nor be shown to be unreadable for good, in `TRIES` tries.
    """
    try:
        location = locate(uri, storage)
    except ConfigError as error:
        return Fetched(None, "unsupported", str(error))
    if location.scheme == "s3" and len(location.path.partition("/")[2].encode()) > MAX_S3_KEY:
        return Fetched(None, "failed", f"the key is longer than the {MAX_S3_KEY} bytes S3 allows")
    return retry(lambda: _read(location, max_bytes, expected_size), uri, sleep)


def fetch_batch(
    uris: Sequence[str],
    sizes: Sequence[int | None],
    storage: StorageConfig,
    max_bytes: int,
    threads: int = FETCH_THREADS,
) -> list[Fetched]:
    """Read objects, `threads` of them at a time; results in the order of `uris`. Raises as :func:`fetch` does."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda uri, size: fetch(uri, storage, max_bytes, size), uris, sizes))


def retry(operation: Callable[[], T], what: str, sleep: Callable[[float], None] = time.sleep) -> T:
    """Call `operation` until it raises no OSError, with growing, jittered pauses; then StorageError naming `what`."""
    start = time.monotonic()
    for attempt in count(1):
        try:
            return operation()
        except OSError as error:
            if attempt >= TRIES or time.monotonic() - start > PATIENCE_S:
                raise StorageError(
                    f"{what}: the storage failed {attempt} times, at last with: {error}; "
                    "run the command again when it answers, finished work is kept"
                ) from error
            # Jitter keeps the threads that a 503 hit together from coming back together.
            sleep(random.uniform(0.5, 1.0) * 2 ** (attempt - 1))
    raise AssertionError("count() has no end")


def _read(location: Location, max_bytes: int, expected_size: int | None) -> Fetched:
    """One try. An OSError that leaves here is transient."""
    filesystem = location.filesystem
    try:
        # Opening a local pipe would wait for a writer. On S3 there is none, and the question would cost a request.
        if location.scheme == "file" and filesystem.get_file_info(location.path).type in _NOT_FILES:
            return Fetched(None, "failed", "not a regular file")
        with filesystem.open_input_file(location.path) as file:
            size = file.size()
            fate = _judge_size(size, max_bytes, expected_size)
            if fate:
                return fate
            data = file.read(size)
    except (OSError, pa.ArrowInvalid) as error:
        fate = _permanent(error, location)
        if fate:
            return fate
        raise
    if len(data) != size:
        return Fetched(None, "changed", "the file shrank while it was read")
    return Fetched(data)


_NOT_FILES = (fs.FileType.Directory, fs.FileType.Unknown)


def _judge_size(size: int, max_bytes: int, expected_size: int | None) -> Fetched | None:
    if expected_size is not None and size != expected_size:
        return Fetched(None, "changed", f"{size} bytes now, {expected_size} bytes in the manifest")
    if size == 0:
        return Fetched(None, "empty", "zero bytes")
    if size > max_bytes:
        return Fetched(None, "too_large", f"{size} bytes, more than max_bytes = {max_bytes}")
    return None


def _permanent(error: Exception, location: Location) -> Fetched | None:
    """The fate of an object that no further try will change; None if one might.

    Arrow gives local errors their class and errno; an S3 error only has its text, `AWS Error <NAME> during <request>`.
    """
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Fetched(None, "missing", "no such file")
    if isinstance(error, PermissionError):
        return Fetched(None, "forbidden", "permission denied")
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return Fetched(None, "missing", "the link points at itself")
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return Fetched(None, "failed", "the file name is too long")
    if isinstance(error, pa.ArrowInvalid):  # an empty path component, a NUL
        return Fetched(None, "failed", f"not a valid path: {error}"[:200])
    text = str(error)
    if text.startswith("Not a regular file"):
        return Fetched(None, "failed", "not a regular file")
    if "INVALID_OBJECT_STATE" in text or "InvalidObjectState" in text:
        return Fetched(None, "forbidden", "archived: restore the object first")
    if "AWS Error ACCESS_DENIED" in text:
        _check_credentials(location)
        return Fetched(None, "forbidden", "access denied")
    return None


def _check_credentials(location: Location) -> None:
    """Raise OSError if it is not this object that is refused but the credentials.

    Arrow asks for an object by HEAD, whose 403 has no body: a dead key reads ACCESS_DENIED like a private object does.
    A listing (of what is below the key: nothing) has a body, so a dead key gets its true name there, while a listing
    that is merely not allowed says ACCESS_DENIED again.
    """
    try:
        location.filesystem.get_file_info(fs.FileSelector(location.path, allow_not_found=True))
    except OSError as error:
        if "AWS Error ACCESS_DENIED" not in str(error):
            raise
