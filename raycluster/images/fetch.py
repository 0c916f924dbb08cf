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
from itertools import count
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError, RayclusterError
from raycluster.images import credentials, reading
from raycluster.images.containers import Part, Unit, part_of, units
from raycluster.images.reading import Fetched as Fetched
from raycluster.storage import Location, locate

TRIES = 5
PATIENCE_S = 30.0
"""No new try begins later than this after the first one."""
FETCH_THREADS = 8
"""Concurrent reads of one task; fetching waits, it does not compute."""
MAX_S3_KEY = 1024
"""Longest key S3 allows, in bytes of UTF-8."""

T = TypeVar("T")


class StorageError(RayclusterError):
    """The storage did not answer; retried before it is raised (exit code 1)."""


def fetch(
    picture: str | Location | Part,
    storage: StorageConfig,
    max_bytes: int,
    expected_size: int | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Fetched:
    """Read one picture: an object, a member of a tar, or a row of a table (:mod:`raycluster.images.containers`).

    Parameters
    ----------
    picture
        Its URI. A :class:`Location` is opened as the file it is, whatever its name looks like, and a :class:`Part` is
        read out of exactly the file it names: this is for places that were resolved and checked before.
    max_bytes
        Larger pictures get the status `too_large`; not a byte of them is read (of rows, kept).
    expected_size
        Bytes according to the manifest; a picture of another size gets the status `changed`.
    sleep
        Waits between tries, given seconds.

    Raises
    ------
    StorageError
        The picture could neither be read nor be shown to be unreadable for good, in `TRIES` tries.
    """
    return fetch_batch([picture], [expected_size], storage, max_bytes, 1, sleep)[0]


def fetch_batch(
    pictures: Sequence[str | Location | Part],
    sizes: Sequence[int | None],
    storage: StorageConfig,
    max_bytes: int,
    threads: int = FETCH_THREADS,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Fetched]:
    """Read pictures, `threads` files at a time; results in their order. Raises as :func:`fetch` does.

    Members of a tar that lie side by side are read together, and rows of a table with each of its row groups read once.
    """
    results: dict[int, Fetched] = {}
    items: list[tuple[int, str, Part | None]] = []
    for index, picture in enumerate(pictures):
        try:
            items.append((index, *_addressed(picture)))
        except ValueError as error:
            results[index] = Fetched(None, "failed", str(error)[:200])

    def read(unit: Unit) -> None:
        expected = [sizes[index] for index in unit.indices]
        results.update(zip(unit.indices, _fetch_unit(unit, expected, storage, max_bytes, sleep), strict=True))

    work = list(units(items))
    if len(work) <= 1:
        for unit in work:
            read(unit)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, work))
    return [results[index] for index in range(len(pictures))]


def _addressed(picture: str | Location | Part) -> tuple[str, Part | None]:
    """The file to open, and what to read of it. Raises :class:`ValueError` for a malformed address."""
    if isinstance(picture, Part):
        return picture.file, picture
    return (picture, part_of(picture)) if isinstance(picture, str) else (picture.uri, None)


def _fetch_unit(
    unit: Unit, expected: list[int | None], storage: StorageConfig, max_bytes: int, sleep: Callable[[float], None]
) -> list[Fetched]:
    """The pictures of a unit, in its order."""
    try:
        location = locate(unit.file, storage)
    except ConfigError as error:
        return [Fetched(None, "unsupported", str(error))] * len(unit.indices)
    if location.scheme == "s3" and len(location.bucket_and_key[1].encode()) > MAX_S3_KEY:
        fate = Fetched(None, "failed", f"the key is longer than the {MAX_S3_KEY} bytes S3 allows")
        return [fate] * len(unit.indices)

    def read(file: pa.NativeFile) -> list[Fetched]:
        if not unit.parts:
            return [reading.whole(file, max_bytes, expected[0])]
        return reading.parts(file, unit.parts, expected, max_bytes)

    def attempt() -> list[Fetched]:
        try:
            found = _open(location, read)
            credentials.remember(location)
            return found
        except (OSError, pa.ArrowInvalid) as error:
            # A file that cannot be opened has one fate for all that is in it.
            fate = _permanent(error, location)
            if fate:
                return [fate] * len(unit.indices)
            raise

    return retry(attempt, unit.file, sleep)


def retry(operation: Callable[[], T], what: str, sleep: Callable[[float], None] = time.sleep) -> T:
    """Call `operation` until it raises no OSError, with growing, jittered pauses; then StorageError naming `what`."""
    start = time.monotonic()
    for attempt in count(1):
        try:
            return operation()
        except OSError as error:
            if "ACCESS_DENIED" in str(error) or "HTTP status 403" in str(error):
                raise StorageError(
                    f"{what}: the storage refuses it ({error}); mend the credentials or their permissions and run the command again, "
                    "finished work is kept"
                ) from error
            spent = time.monotonic() - start
            # The S3 client tries by itself for minutes where a server is silent, so there one try here may be all.
            if attempt >= TRIES or spent > PATIENCE_S:
                raise StorageError(
                    f"{what}: the storage failed {attempt} time{'s' if attempt > 1 else ''} in {spent:.0f} s, at last with: {error}; "
                    "run the command again when it answers, finished work is kept"
                ) from error
            # Jitter keeps the threads that a 503 hit together from coming back together.
            sleep(random.uniform(0.5, 1.0) * 2 ** (attempt - 1))
    raise AssertionError("count() has no end")


def _open(location: Location, read: Callable[[pa.NativeFile], T]) -> T:
    filesystem = location.filesystem
    # Opening a local pipe would wait for a writer. On S3 there is none, and the question would cost a request.
    if location.scheme == "file" and filesystem.get_file_info(location.path).type in _NOT_FILES:
        raise OSError(f"Not a regular file: {location.path}")
    with filesystem.open_input_file(location.path) as file:
        return read(file)


_NOT_FILES = (fs.FileType.Directory, fs.FileType.Unknown)


def _permanent(error: Exception, location: Location) -> Fetched | None:
    """The fate of an object that no further try will change; None if one might.

    Arrow gives local errors their class and errno; an S3 error only has its text, `AWS Error <NAME> during <request>`.
    """
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Fetched(None, "missing", "no such file")
    if isinstance(error, PermissionError):
        if location.scheme == "s3":
            credentials.check(location)
        archived = "archived: restore the object first"
        return Fetched(None, "forbidden", archived if "InvalidObjectState" in str(error) else "permission denied")
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
        credentials.check(location)
        return Fetched(None, "forbidden", "access denied")
    return None
