"""Read pictures out of an open file: the whole of it, members of a tar, rows of a table. What is wrong with one becomes its status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from raycluster.errors import ConfigError
from raycluster.images.containers import Part
from raycluster.images.image_tables import read_rows
from raycluster.tables import Status


@dataclass(frozen=True)
class Fetched:
    """The bytes of one picture (status `ok`), or why there are none."""

    data: bytes | None
    status: Status = "ok"
    error: str | None = None


def whole(file: pa.NativeFile, max_bytes: int, expected_size: int | None) -> Fetched:
    """The file as one picture; nothing is read of one that is empty, too large or not as large as expected."""
    size = file.size()
    fate = _judge_size(size, max_bytes, expected_size)
    if fate:
        return fate
    data = file.read(size)
    return Fetched(data) if len(data) == size else _SHRANK


def parts(file: pa.NativeFile, wanted: Sequence[Part], expected: Sequence[int | None], max_bytes: int) -> list[Fetched]:
    """Pictures inside the file, in ascending order of their place: all rows, or members near each other. `expected`: sizes, as far as known.

    Raises :class:`OSError` if the storage fails.
    """
    size = file.size()
    if wanted[0].file_size not in (None, size):
        fate = Fetched(None, "changed", f"the file has {size} bytes now, {wanted[0].file_size} when it was listed")
        return [fate] * len(wanted)
    read = _rows if wanted[0].is_row else _members
    return read(file, wanted, expected, max_bytes)


def damaged(error: Exception) -> bool:
    """Whether an error of Arrow tells of the file's content. Those of the network say so (`AWS Error …`) or have a number."""
    return isinstance(error, pa.ArrowException) or (
        isinstance(error, OSError) and error.errno is None and "AWS Error" not in str(error)
    )


_SHRANK = Fetched(None, "changed", "the file shrank while it was read")


def _members(
    file: pa.NativeFile, wanted: Sequence[Part], expected: Sequence[int | None], max_bytes: int
) -> list[Fetched]:
    fates = [_judge_size(part.length, max_bytes, size) for part, size in zip(wanted, expected, strict=True)]
    good = [part for part, fate in zip(wanted, fates, strict=True) if fate is None]
    if not good:
        return [fate for fate in fates if fate is not None]
    first, end = good[0].first, max(part.first + part.length for part in good)
    file.seek(first)
    data = memoryview(file.read(end - first))
    if len(data) != end - first:
        return [fate or _SHRANK for fate in fates]
    return [
        fate or Fetched(bytes(data[part.first - first : part.first - first + part.length]))
        for part, fate in zip(wanted, fates, strict=True)
    ]


def _rows(file: pa.NativeFile, wanted: Sequence[Part], expected: Sequence[int | None], max_bytes: int) -> list[Fetched]:
    try:
        images = read_rows(file, [part.first for part in wanted])
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
