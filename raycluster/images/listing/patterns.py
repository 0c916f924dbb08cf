"""Find the tars or tables that one pattern names: a glob (`shards/*.tar`) or a range (`shards/{000..099}.tar`)."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator

from pyarrow import fs

from raycluster.errors import ConfigError
from raycluster.images.listing.run_folders import without_runs
from raycluster.images.listing.walk import call_storage
from raycluster.storage.location import Location
from raycluster.storage.parallel import map_threads

FILE_KINDS = (".tar", ".parquet", ".csv")
"""Suffixes of files that hold or list pictures."""
MOST_FILES = 100_000
"""Most files that one range may name. A range that names more is taken for a mistake."""

_RANGE = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")
_GLOB = re.compile(r"[*?\[]")


def kind_of(source: str) -> str | None:
    """Return the suffix of a source if it is one of `FILE_KINDS`, else None."""
    suffix = os.path.splitext(source)[1].lower()
    return suffix if suffix in FILE_KINDS else None


def matching(pattern: Location, output: Location | None = None) -> list[Location]:
    """Return the files that a pattern names: those of a range in its order, those of a glob sorted; none if it is not a pattern.

    A glob that starts outside `output`, the run folder, finds no files in it.

    Raises :class:`ConfigError` if a file of a range is absent, or a glob matches nothing.
    """
    if not (_RANGE.search(pattern.path) or _GLOB.search(pattern.path)):
        return []
    files: list[Location] = []
    absent: list[str] = []
    paths = list(expand(pattern.path))
    for path in paths:
        place = Location(path, pattern.scheme, pattern.options)
        found = _outside(list(_glob(place)), place, output) if _GLOB.search(path) else [place]
        files += found
        if not found:
            absent.append(place.uri)
    if not _GLOB.search(pattern.path):
        absent = _absent(files)
    if absent and len(paths) == 1:
        raise ConfigError(f"images: no file matches {pattern.uri}; correct the pattern")
    if absent:
        raise ConfigError(
            f"images: {pattern.uri}: {len(absent)} of {len(paths)} names have no file, the first is {absent[0]}; "
            "correct the range, or give a glob (*) for what is there"
        )
    return list(dict.fromkeys(files))


def expand(path: str) -> Iterator[str]:
    """Yield every name of a path with ranges `{000..099}`, as a shell expands them.

    If a bound has leading zeros, the numbers are padded with zeros to the width of the longer bound.
    Raises :class:`ConfigError` for a range that runs backwards or names more than `MOST_FILES`.
    """
    found = _RANGE.search(path)
    if found is None:
        yield path
        return
    low, high = found.groups()
    count = int(high) - int(low) + 1
    if not 0 < count <= MOST_FILES:
        raise ConfigError(f"images: {path}: the range {found[0]} must run upwards and name at most {MOST_FILES} files")
    padded = any(len(bound) > 1 and bound.startswith("0") for bound in (low, high))
    width = max(len(low), len(high)) if padded else 1
    for number in range(int(low), int(high) + 1):
        yield from expand(f"{path[: found.start()]}{number:0{width}d}{path[found.end() :]}")


def _absent(files: list[Location]) -> list[str]:
    there = map_threads(lambda file: call_storage(file.is_file, file.uri), files)
    return [file.uri for file, found in zip(files, there, strict=True) if not found]


def _glob(pattern: Location) -> Iterator[Location]:
    """Yield the files that match. The path is matched part by part, so that only folders on the way are listed."""
    parts = pattern.path.split("/")
    first = next(i for i, part in enumerate(parts) if _GLOB.search(part))
    if first == 0 and pattern.scheme != "file":
        raise ConfigError(f"images: {pattern.uri}: a bucket cannot be named by a pattern; write its name")
    folder, rest = "/".join(parts[:first]) or "/", "/".join(parts[first + 1 :])
    wanted = fs.FileType.Directory if rest else fs.FileType.File
    names = sorted(
        info.path for info in _entries(Location(folder, pattern.scheme, pattern.options)) if info.type == wanted
    )
    for path in names:
        if not fnmatch.fnmatchcase(path.rpartition("/")[2], parts[first]):
            continue
        place = Location(f"{path}/{rest}" if rest else path, pattern.scheme, pattern.options)
        if not rest:
            yield place
        elif _GLOB.search(rest):
            yield from _glob(place)
        elif place.is_file():
            yield place


def _outside(files: list[Location], pattern: Location, output: Location | None) -> list[Location]:
    fixed = Location(_GLOB.split(pattern.path)[0].rpartition("/")[0] or "/", pattern.scheme, pattern.options)
    return files if output is None else without_runs(fixed, files, output)


def _entries(folder: Location) -> list[fs.FileInfo]:
    selector = fs.FileSelector(folder.path, allow_not_found=True)
    return call_storage(lambda: folder.filesystem.get_file_info(selector), folder.uri)
