"""Read the bytes of pictures. A problem with one picture becomes its status; a problem with the storage becomes an error.

This distinction decides whether a run can be trusted. A status is final: the row is never read again. So only errors known to
be permanent become a status. Everything else is retried, and then ends the task with StorageError.
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
from raycluster.images import containers
from raycluster.images.addresses import Entry, Unit, entry_of, units
from raycluster.images.containers import Fetched as Fetched
from raycluster.storage import credentials
from raycluster.storage.location import Location, locate
from raycluster.storage.s3_errors import Cause, cause_of, is_refusal, is_s3_error

TRIES = 5
PATIENCE_S = 30.0
"""Seconds from the start of the first try; a try that fails later is not repeated."""
FETCH_THREADS = 8
"""Concurrent reads of one task. Fetching waits and does not compute."""
MAX_S3_KEY = 1024
"""Length of the longest key that S3 allows, in bytes of UTF-8."""

T = TypeVar("T")


class StorageError(RayclusterError):
    """The storage refused or did not answer, even after retries where these can help (exit code 1)."""


class NotARegularFileError(OSError):
    """A folder, a pipe or a device where a file was expected."""


def fetch(
    picture: str | Location | Entry,
    storage: StorageConfig,
    max_bytes: int,
    expected_size: int | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Fetched:
    """Read one picture: an object, a member of a tar, or a row of a table (:mod:`raycluster.images.addresses`).

    Parameters
    ----------
    picture
        Its URI. For places that were resolved and checked before, it may be a :class:`Location`, which is opened as a file
        whatever its name looks like, or an :class:`Entry`, which is read from exactly the file that it names.
    max_bytes
        Larger pictures get the status `too_large` and are not read. Rows of a table are read, but not kept.
    expected_size
        Bytes according to the manifest. A picture of another size gets the status `changed`.
    sleep
        Called with the seconds to wait between two tries.

    Raises
    ------
    StorageError
        The storage refused, or `TRIES` tries could neither read the picture nor show that it can never be read.
    """
    return fetch_batch([picture], [expected_size], storage, max_bytes, 1, sleep)[0]


def fetch_batch(
    pictures: Sequence[str | Location | Entry],
    sizes: Sequence[int | None],
    storage: StorageConfig,
    max_bytes: int,
    threads: int = FETCH_THREADS,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Fetched]:
    """Read pictures, `threads` files at a time, and return the results in the same order. Raises as :func:`fetch` does.

    Members of a tar that lie near each other are read together. Each row group of a table is read once for all its rows.
    """
    results: dict[int, Fetched] = {}
    items: list[tuple[int, str, Entry | None]] = []
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


def _addressed(picture: str | Location | Entry) -> tuple[str, Entry | None]:
    """Return the URI of the file to open, and the entry to read in it (None: the whole file).

    Raises :class:`ValueError` for a malformed address.
    """
    if isinstance(picture, Entry):
        return picture.file, picture
    return (picture, entry_of(picture)) if isinstance(picture, str) else (picture.uri, None)


def _fetch_unit(
    unit: Unit, expected: list[int | None], storage: StorageConfig, max_bytes: int, sleep: Callable[[float], None]
) -> list[Fetched]:
    """Return the pictures of a unit, in its order."""
    try:
        location = locate(unit.file, storage)
    except ConfigError as error:
        return [Fetched(None, "unsupported", str(error))] * len(unit.indices)
    if location.scheme == "s3" and len(location.bucket_and_key[1].encode()) > MAX_S3_KEY:
        fate = Fetched(None, "failed", f"the key is longer than the {MAX_S3_KEY} bytes S3 allows")
        return [fate] * len(unit.indices)

    def read(file: pa.NativeFile) -> list[Fetched]:
        if not unit.entries:
            return [containers.whole(file, max_bytes, expected[0])]
        return containers.read_entries(file, unit.entries, expected, max_bytes)

    def attempt() -> list[Fetched]:
        try:
            found = _open(location, read)
            credentials.note_readable(location)
            return found
        except (OSError, pa.ArrowInvalid) as error:
            # If a file cannot be opened, all pictures in it get the same status.
            fate = _permanent(error, location)
            if fate:
                return [fate] * len(unit.indices)
            raise

    return retry(attempt, unit.file, sleep)


def retry(operation: Callable[[], T], what: str, sleep: Callable[[float], None] = time.sleep) -> T:
    """Call `operation` until it raises no OSError, with growing, jittered pauses. At last it raises StorageError, which names `what`."""
    start = time.monotonic()
    for attempt in count(1):
        try:
            return operation()
        except OSError as error:
            if is_refusal(error):
                raise StorageError(
                    f"{what}: the storage refuses access ({error}); correct the credentials or their permissions, and run the command again: "
                    "finished work is kept"
                ) from error
            spent = time.monotonic() - start
            # If a server is silent, the S3 client itself retries for minutes, so this loop may make only one try.
            if attempt >= TRIES or spent > PATIENCE_S:
                raise StorageError(
                    f"{what}: the storage failed {attempt} time{'s' if attempt > 1 else ''} in {spent:.0f} s, the last time with: {error}; "
                    "run the command again when it answers: finished work is kept"
                ) from error
            # Without jitter, threads that got a 503 at the same time would try again at the same time.
            sleep(random.uniform(0.5, 1.0) * 2 ** (attempt - 1))
    raise AssertionError("count() has no end")


def _open(location: Location, read: Callable[[pa.NativeFile], T]) -> T:
    filesystem = location.filesystem
    # Opening a local pipe would wait for a writer. S3 has no pipes, and the check would cost a request.
    if location.scheme == "file" and filesystem.get_file_info(location.path).type in _NOT_FILES:
        raise NotARegularFileError(location.path)
    with filesystem.open_input_file(location.path) as file:
        return read(file)


_NOT_FILES = (fs.FileType.Directory, fs.FileType.Unknown)


def _permanent(error: Exception, location: Location) -> Fetched | None:
    """Return the result for an object if no further try will change it; None if one might.

    Arrow gives local errors their class and errno. For S3 errors, :mod:`raycluster.storage.s3_errors` tells what they mean.
    """
    archived = "the object is archived: restore it first"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Fetched(None, "missing", "no such file")
    if isinstance(error, PermissionError):
        if location.scheme == "s3":
            credentials.check(location)
        return Fetched(None, "forbidden", archived if cause_of(error) is Cause.ARCHIVED else "permission denied")
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return Fetched(None, "missing", "the link points at itself")
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return Fetched(None, "failed", "the file name is too long")
    if isinstance(error, pa.ArrowInvalid):  # an empty path component, a NUL
        return Fetched(None, "failed", f"not a valid path: {error}"[:200])
    if isinstance(error, NotARegularFileError):
        return Fetched(None, "failed", "not a regular file")
    if not is_s3_error(error):
        return None
    cause = cause_of(error)
    if cause is Cause.ARCHIVED:
        return Fetched(None, "forbidden", archived)
    if cause is Cause.DENIED:
        credentials.check(location)
        return Fetched(None, "forbidden", "access denied")
    return None
