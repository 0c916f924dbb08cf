"""List the pictures of all sources, on this machine's disk and in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow as pa
from pyarrow import fs

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError
from raycluster.images.listing.columns import LISTING, Labels
from raycluster.images.listing.duplicates import refuse_duplicates
from raycluster.images.listing.known_tars import list_known_tar
from raycluster.images.listing.patterns import kind_of, matching
from raycluster.images.listing.spill import Spill
from raycluster.images.listing.tars import TarListing
from raycluster.images.listing.uri_list import read_list
from raycluster.images.listing.walk import call_storage, walk
from raycluster.storage.location import Location, locate
from raycluster.storage.parallel import map_threads

SAMPLES = 5
"""Number of pictures taken as a sample of each source."""

MapTars = Callable[[Callable[[Location], TarListing], list[Location]], Iterable[TarListing]]
"""Calls a function for each tar, and gives the results in order."""


@dataclass(frozen=True)
class Listing:
    """The pictures that the configuration's `images:` names."""

    rows: Spill
    """One row a picture, the schema `LISTING`. Rows are ordered by source. Those of a folder are sorted by image_id; those of tars, tables
    and lists keep the order of the file, so that neighbors are read together."""
    samples: tuple[tuple[str, ...], ...]
    """URIs of a few pictures of each source, evenly spread."""
    other_files: int
    """Number of files (in a tar, members) that have no picture's name or are hidden."""
    kept_tars: frozenset[str] = frozenset()
    """Files in which the contents of tars are kept for later listings."""


def list_images(
    sources: tuple[str, ...],
    storage: StorageConfig,
    labels: Labels,
    progress: Callable[[int], None] = lambda images: None,
    output: Location | None = None,
    map_tars: MapTars = map_threads,
    known_tars: Location | None = None,
) -> Listing:
    """List the pictures of all sources. The rows lie on the disk (`$TMPDIR`), and memory holds some thousand of them.

    Parameters
    ----------
    sources
        Folders or prefixes, single pictures, `.tar` shards (WebDataset), `.parquet` and `.csv` lists with a column `uri`,
        `.parquet` files with a column `image`. A glob or a range `{000..099}` names several such files.
    labels
        `folder`: the label is the parent folder's name, null directly below the prefix. A list's own column `label`
        and a shard's `.cls` members take precedence.
    progress
        Called with the number of further pictures that were found.
    output
        The run folder. It may lie below a source; files in it are not listed.
    map_tars
        Reads the tars; a run reads them in tasks.
    known_tars
        Folder in which the contents of tars are kept for later listings; None: every tar is read.

    Raises
    ------
    ConfigError
        A source is absent, unreadable, damaged, of an unsupported kind or holds no picture; a file name is not UTF-8; an
        image_id occurs twice.
    StorageError
        The storage does not answer.
    """
    rows, ends, other_files, kept = Spill(LISTING), [0], 0, set[str]()

    def write(table: pa.Table, key: str = "") -> None:
        rows.append(table, key)
        progress(len(table))

    def write_tars(files: list[Location]) -> Counter[str]:
        others: Counter[str] = Counter()
        for found in map_tars(partial(list_known_tar, labels=labels, folder=known_tars), files):
            write(found.rows)
            others += found.others
            kept.add(found.kept_as)
        return others

    for source in sources:
        rows.begin_section()
        others = _list_source(source, storage, labels, output, write, write_tars)
        if len(rows) == ends[-1]:
            raise ConfigError(f"images: no pictures in {source} ({_describe(others)}); {_WANTED}")
        ends.append(len(rows))
        other_files += others.total()
    refuse_duplicates(rows, "images", _UNIQUE)
    samples = tuple(_samples(rows, start, end) for start, end in pairwise(ends))
    return Listing(rows, samples, other_files, frozenset(kept - {""}))


_WANTED = "give files named .jpg .jpeg .png .webp .gif .bmp .tif .tiff, .tar shards, or a .parquet or .csv list with a column `uri`, or .parquet files with a column `image`"
_UNIQUE = "give one folder that holds them all, or a list whose column `image_id` is unique"


def _list_source(
    source: str,
    storage: StorageConfig,
    labels: Labels,
    output: Location | None,
    write: Callable[..., None],
    write_tars: Callable[[list[Location]], Counter[str]],
) -> Counter[str]:
    """Write the rows of a source, and return the number of other files of each kind."""
    location, kind = locate(source, storage), kind_of(source)
    info = call_storage(lambda: location.filesystem.get_file_info(location.path), source)
    if info.type == fs.FileType.Directory or (kind is None and info.type == fs.FileType.File):
        return walk(location, info, labels, write, output)
    files = [location] if info.type == fs.FileType.File else matching(location, output) if kind else []
    if not files:
        raise ConfigError(f"images: {source} does not exist{_bucket_too(location)}; {_WANTED}")
    if kind == ".tar":
        return write_tars(files)
    for tables in map_threads(partial(read_list, labels=labels), files):
        for table in tables:
            write(table)
    return Counter()


def _samples(rows: Spill, start: int, end: int) -> tuple[str, ...]:
    places = np.unique(np.linspace(start, end - 1, SAMPLES).round().astype(np.int64))
    return tuple(rows.take(places)["uri"].to_pylist())


def _bucket_too(location: Location) -> str:
    if location.scheme == "file":
        return ""
    bucket = location.bucket_and_key[0]
    info = call_storage(lambda: location.filesystem.get_file_info(bucket), f"s3://{bucket}")
    return f", nor does the bucket {bucket}" if info.type == fs.FileType.NotFound else ""


def _describe(others: Counter[str]) -> str:
    if not others:
        return "it is empty"
    kinds = ", ".join(f"{number} {suffix}" for suffix, number in others.most_common(5))
    hint = "; to read these shards, give the pattern <folder>/*.tar" if others[".tar"] else ""
    return f"{others.total()} other files: {kinds}{hint}"
