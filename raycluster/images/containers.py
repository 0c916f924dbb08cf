"""Read pictures from an open file: the whole file, members of a tar, or rows of a table. A problem with a picture becomes its status."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from raycluster.errors import ConfigError
from raycluster.images.addresses import Entry
from raycluster.images.listing.image_tables import read_rows
from raycluster.storage.s3_errors import is_s3_error
from raycluster.tables.schemas import Status


@dataclass(frozen=True)
class Fetched:
    """The bytes of one picture (status `ok`), or the reason why there are none."""

    data: bytes | None
    status: Status = "ok"
    error: str | None = None

    @property
    def content(self) -> bytes | None:
        """A hash of the bytes, 16 bytes of BLAKE2b; None if there are none. Exact copies of a picture have the same."""
        return None if self.data is None else hashlib.blake2b(self.data, digest_size=16).digest()


def whole(file: pa.NativeFile, max_bytes: int, expected_size: int | None) -> Fetched:
    """Return the whole file as one picture. A file that is empty, too large or not of the expected size is not read."""
    size = file.size()
    fate = _judge_size(size, max_bytes, expected_size)
    if fate:
        return fate
    data = file.read(size)
    return Fetched(data) if len(data) == size else _SHRANK


def read_entries(
    file: pa.NativeFile, wanted: Sequence[Entry], expected: Sequence[int | None], max_bytes: int
) -> list[Fetched]:
    """Return the pictures that `wanted` names inside the file, in the same order.

    `wanted` ascends by place. It holds either only rows, or only members near each other. `expected`: their sizes, None where unknown.

    Raises :class:`OSError` if the storage fails.
    """
    size = file.size()
    if wanted[0].file_size not in (None, size):
        fate = Fetched(None, "changed", f"the file has {size} bytes now, {wanted[0].file_size} when it was listed")
        return [fate] * len(wanted)
    read = _rows if wanted[0].is_row else _members
    return read(file, wanted, expected, max_bytes)


def damaged(error: Exception) -> bool:
    """Return whether an error of Arrow is about the file's content. Errors of the network come from S3 or have an `errno`."""
    return isinstance(error, pa.ArrowException) or (
        isinstance(error, OSError) and error.errno is None and not is_s3_error(error)
    )


_SHRANK = Fetched(None, "changed", "the file shrank while it was read")


def _members(
    file: pa.NativeFile, wanted: Sequence[Entry], expected: Sequence[int | None], max_bytes: int
) -> list[Fetched]:
    fates = [_judge_size(entry.length, max_bytes, size) for entry, size in zip(wanted, expected, strict=True)]
    good = [entry for entry, fate in zip(wanted, fates, strict=True) if fate is None]
    if not good:
        return [fate for fate in fates if fate is not None]
    first, end = good[0].first, max(entry.first + entry.length for entry in good)
    file.seek(first)
    data = memoryview(file.read(end - first))
    if len(data) != end - first:
        return [fate or _SHRANK for fate in fates]
    return [
        fate or Fetched(bytes(data[entry.first - first : entry.first - first + entry.length]))
        for entry, fate in zip(wanted, fates, strict=True)
    ]


def _rows(
    file: pa.NativeFile, wanted: Sequence[Entry], expected: Sequence[int | None], max_bytes: int
) -> list[Fetched]:
    try:
        images = read_rows(file, [entry.first for entry in wanted])
        return [_row(image, max_bytes, size) for image, size in zip(images, expected, strict=True)]
    except ConfigError as error:
        return [Fetched(None, "failed", str(error)[:200])] * len(wanted)
    except (pa.ArrowException, OSError) as error:
        return [_unreadable(error)] * len(wanted)


def _row(image: bytes | int | Exception | None, max_bytes: int, expected_size: int | None) -> Fetched:
    if image is None:
        return Fetched(None, "missing", "the table holds no picture in this row")
    if isinstance(image, int):
        return Fetched(None, "changed", f"the table has only {image} rows")
    if isinstance(image, Exception):
        return _unreadable(image)
    return _judge_size(len(image), max_bytes, expected_size) or Fetched(image)


def _unreadable(error: Exception) -> Fetched:
    if not damaged(error):
        raise error
    return Fetched(None, "undecodable", f"the table is damaged: {error}"[:200])


def _judge_size(size: int, max_bytes: int, expected_size: int | None) -> Fetched | None:
    if expected_size is not None and size != expected_size:
        return Fetched(None, "changed", f"{size} bytes now, {expected_size} bytes in the manifest")
    if size == 0:
        return Fetched(None, "empty", "zero bytes")
    if size > max_bytes:
        return Fetched(None, "too_large", f"{size} bytes, more than max_bytes = {max_bytes}")
    return None
