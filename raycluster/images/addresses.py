"""Make and parse addresses of pictures inside larger files, and group those of a batch, so that few requests read each file.

An address names one of these:

- a member of a tar: `<tar uri>#bytes=<first>-<last>/<bytes of the tar>`, as in HTTP's Content-Range; an empty member has last = first − 1;
- a row of a Parquet file's column `image`: `<file uri>#row=<number from 0>`, then `/<bytes of the file>` where it is known.

The size of the file in an address tells whether the file is still the one that was listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

GAP = 2**16
"""Most bytes between two members that are read at once; another request would take longer than to read the gap."""
SPAN = 2**23
"""Most bytes that are read at once, unless one member is larger."""

_FRAGMENT = re.compile(r"(.+\.(tar|parquet))#(bytes|row)=(.*)", re.IGNORECASE | re.DOTALL)
_BYTES = re.compile(r"([0-9]{1,15})-(-1|[0-9]{1,15})/([0-9]{1,15})")
_ROW = re.compile(r"([0-9]{1,12})(?:/([0-9]{1,15}))?")


@dataclass(frozen=True)
class Entry:
    """A picture inside a larger file."""

    file: str
    """URI of the file."""
    first: int
    """First byte of a tar's member; number of a table's row."""
    length: int
    """Number of bytes of a tar's member; 1 for a row."""
    file_size: int | None
    """Bytes of the file when it was listed; None if that is not known."""
    is_row: bool = False


@dataclass
class Unit:
    """Pictures that are read from one file together."""

    file: str
    indices: list[int] = field(default_factory=list)
    """Positions of its pictures in the batch."""
    entries: list[Entry] = field(default_factory=list)
    """The pictures, in the same order; empty if the file itself is the picture."""


def member_uri(tar: str, first: int, length: int, tar_size: int) -> str:
    """Return the address of `length` bytes of a tar from byte `first` on."""
    return f"{tar}#bytes={first}-{first + length - 1}/{tar_size}"


def row_uri(file: str, row: int | str) -> str:
    """Return the address of a row of a table, without the size of the file."""
    return f"{file}#row={row}"


def container_of(uri: str) -> str:
    """Return the file that must be opened for an address: the tar or table that it points into, else the address itself."""
    match = _FRAGMENT.fullmatch(uri)
    return uri if match is None else match[1]


def entry_of(uri: str) -> Entry | None:
    """Return the picture that an address names inside a file; None if it is the address of a file itself.

    Raises :class:`ValueError` for a string that begins like an address inside a file but is malformed.
    """
    match = _FRAGMENT.fullmatch(uri)
    if match is None:
        return None
    file, suffix, kind, numbers = match.groups()
    if (suffix.lower(), kind.lower()) == ("tar", "bytes") and (found := _BYTES.fullmatch(numbers)):
        first, last, size = map(int, found.groups())
        if first - 1 <= last < size and first < size:
            return Entry(file, first, last - first + 1, size)
    if (suffix.lower(), kind.lower()) == ("parquet", "row") and (found := _ROW.fullmatch(numbers)):
        return Entry(file, int(found[1]), 1, int(found[2]) if found[2] else None, is_row=True)
    raise ValueError(f"not an address inside a {suffix.lower()} file: #{kind}={numbers}")


def units(items: Iterable[tuple[int, str, Entry | None]]) -> Iterator[Unit]:
    """Group a batch of pictures: rows by table, members by tar and place, files alone.

    Each item is a position in the batch, a URI, and the :func:`entry_of` that URI.
    """
    inside: dict[tuple[str, int | None, bool], list[tuple[int, int, Entry]]] = {}
    for index, uri, entry in items:
        if entry is None:
            yield Unit(uri, [index])
        else:
            inside.setdefault((entry.file, entry.file_size, entry.is_row), []).append((entry.first, index, entry))
    for (file, _, is_row), found in inside.items():
        unit, first, end = Unit(file), 0, 0
        for place, index, entry in sorted(found, key=lambda item: item[:2]):
            after = place + entry.length
            if unit.entries and not is_row and (place - end > GAP or after - first > SPAN):
                yield unit
                unit = Unit(file)
            if not unit.entries:
                first = end = place
            unit.indices.append(index)
            unit.entries.append(entry)
            end = max(end, after)
        yield unit
