"""From `images:` to the manifest's rows: folders and prefixes are walked, lists of URIs are read."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from pyarrow import fs

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError
from raycluster.images.fetch import retry
from raycluster.storage import Location, locate
from raycluster.tables import MANIFEST

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
LIST_SUFFIXES = frozenset({".parquet", ".csv"})
LISTING = MANIFEST.remove(MANIFEST.get_field_index("row_id"))
"""Schema of a manifest whose rows are not numbered yet."""

# A parent folder below the prefix: scheme and bucket are no folder, nor is a leading slash.
_PARENT_FOLDER = r"^(?:[A-Za-z][A-Za-z0-9+.-]*://[^/]*/)?(?:.*/)?(?P<folder>[^/]+)/[^/]*$"
_ABSOLUTE = r"^(?:/|~|[A-Za-z][A-Za-z0-9+.-]*://)"


@dataclass(frozen=True)
class Listing:
    """What `images:` names."""

    table: pa.Table
    """One row a picture, sorted by image_id; schema `LISTING`."""
    other_files: int
    """Files beside the pictures that are no pictures by their names, or hidden (below a name that starts with a dot)."""


def list_images(sources: tuple[str, ...], storage: StorageConfig, labels: Literal["folder"] | None) -> Listing:
    """List the pictures of all sources, one after the other.

    Parameters
    ----------
    sources
        Folders or prefixes, single pictures, or `.parquet` and `.csv` files with a column `uri`.
    labels
        `folder`: the parent folder's name, null directly below the prefix. A list's own column `label` goes before it.

    Raises
    ------
    ConfigError
        A source is absent, of an unsupported kind or holds no picture; a file name is not UTF-8; an image_id occurs twice.
    StorageError
        The storage does not answer.
    """
    tables, other_files = [], 0
    for source in sources:
        table, others = _list_source(source, storage, labels)
        if not table.num_rows:
            raise ConfigError(f"images: no pictures in {source}: {_describe(others)}; {_KINDS}")
        tables.append(table)
        other_files += others.total()
    table = pa.concat_tables(tables).sort_by("image_id")
    _refuse_duplicates(table["image_id"])
    return Listing(table, other_files)


_KINDS = "pictures are files named .jpg .jpeg .png .webp .gif .bmp .tif .tiff, or rows of a .parquet or .csv list"


def _describe(others: Counter[str]) -> str:
    if not others:
        return "it holds no files"
    return f"{others.total()} other files ({', '.join(f'{suffix} {n}' for suffix, n in others.most_common(5))})"


def _list_source(
    source: str, storage: StorageConfig, labels: Literal["folder"] | None
) -> tuple[pa.Table, Counter[str]]:
    location = locate(source, storage)
    suffix = os.path.splitext(location.name)[1].lower()
    if suffix == ".tar":
        raise ConfigError(
            f"images: {source}: tar files are not supported yet in this version: extract the pictures into a folder"
        )
    kind = retry(lambda: _kind(location), source)
    if kind == fs.FileType.NotFound:
        raise ConfigError(f"images: {source} does not exist; give a folder, a prefix, or a .parquet or .csv list")
    if suffix in LIST_SUFFIXES:
        files = [location] if kind == fs.FileType.File else location.list(suffix)
        return pa.concat_tables([_read_list(file, location.parent, labels) for file in files]), Counter()
    found = _Found()
    if kind == fs.FileType.File:
        found.add(location.name, *_file_facts(location))
    else:
        (_walk_local if location.scheme == "file" else _walk_remote)(location, found)
    table = found.table(location if kind == fs.FileType.Directory else location.parent)
    if labels == "folder":
        table = table.set_column(table.schema.get_field_index("label"), LISTING.field("label"), _folder(table["image_id"]))
    return table, found.others
