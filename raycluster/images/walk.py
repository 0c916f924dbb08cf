"""Find the pictures below a folder or an S3 prefix."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from raycluster.errors import ConfigError
from raycluster.images.fetch import retry
from raycluster.storage import Location
from raycluster.tables import MANIFEST

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
LISTING = MANIFEST.remove(MANIFEST.get_field_index("row_id"))
"""Schema of a manifest whose rows are not numbered yet."""

T = TypeVar("T")


@dataclass
class Found:
    """What a walk has met so far."""

    image_ids: list[str] = field(default_factory=list)
    sizes: list[int | None] = field(default_factory=list)
    modified_us: list[int | None] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    """Files that are no pictures by their names, or hidden: how many of each kind."""

    def add(self, path: str, facts: Callable[[], tuple[int | None, int | None]]) -> None:
        """Note the file at `path` (relative to the prefix); `facts` gives size and modification time in ns."""
        suffix = os.path.splitext(path)[1].lower()
        hidden = path.startswith(".") or "/." in path
        if hidden or suffix not in PICTURE_SUFFIXES:
            self.others["hidden" if hidden else suffix or "without suffix"] += 1
            return
        size, modified_ns = facts()
        self.image_ids.append(path)
        self.sizes.append(size)
        self.modified_us.append(None if modified_ns is None else modified_ns // 1000)

    def table(self, prefix: Location, labels: Literal["folder"] | None) -> pa.Table:
        """The pictures as rows of schema `LISTING`, in the order met."""
        try:
            image_ids = pa.array(self.image_ids, pa.string())
            root = pa.scalar(prefix.uri.rstrip("/"))
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"images: {prefix.uri!a}: the file name {error.object!a} is not UTF-8; rename the file"
            ) from None
        columns = {
            "image_id": image_ids,
            "uri": pc.binary_join_element_wise(root, image_ids, "/"),
            "size": pa.array(self.sizes, pa.int64()),
            "etag": pa.nulls(len(image_ids), pa.string()),
            "modified": pa.array(self.modified_us, pa.int64()).cast(LISTING.field("modified").type),
            "label": parent_folder(image_ids) if labels == "folder" else pa.nulls(len(image_ids), pa.string()),
        }
        return pa.table(columns, schema=LISTING)


def walk(root: Location, info: fs.FileInfo, labels: Literal["folder"] | None) -> tuple[pa.Table, Counter[str]]:
    """Pictures at or below `root`, and how many other files of each kind there are.

    Hidden files, and all files in hidden folders, count as others. Linked files and folders are followed; a link whose
    target is absent is a picture without a size, whose fate shows when it is fetched.
    """
    found = Found()
    if info.type != fs.FileType.Directory:
        found.add(root.name, partial(_facts_of_info, info))
        return found.table(root.parent, labels), found.others
    if root.scheme == "file":
        _walk_local(root.path, found)
    else:
        _walk_remote(root, found)
    return found.table(root, labels), found.others


def parent_folder(paths: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Name of the folder that holds each path or URI; null for one directly below the prefix or in a bucket's root."""
    below_bucket = pc.replace_substring_regex(drop_dots(paths), r"^[A-Za-z][A-Za-z0-9+.-]*://[^/]*/", "")
    return pc.struct_field(pc.extract_regex(below_bucket, r"(?P<folder>[^/]+)/[^/]*$"), "folder")


def drop_dots(paths: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The paths without a leading `./`."""
    return pc.replace_substring_regex(paths, r"^(?:\./+)+", "")


def ask(operation: Callable[[], T], uri: str) -> T:
    """Call the storage about `uri`, patiently; what the user can mend (no permission, a damaged file) is a ConfigError."""

    def attempt() -> T:
        try:
            return operation()
        except pa.ArrowException as error:
            raise ConfigError(f"images: {uri}: {error}") from None
        except OSError as error:
            # Arrow's errors without errno are the network's (`AWS Error …`) or tell of a damaged file.
            damaged = error.errno is None and "AWS Error" not in str(error)
            if damaged or isinstance(error, PermissionError) or any(name in str(error) for name in _REFUSALS):
                raise ConfigError(f"images: {uri} cannot be read: {error}") from None
            raise

    return retry(attempt, uri)


_REFUSALS = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "NO_SUCH_BUCKET")


def _walk_remote(root: Location, found: Found) -> None:
    selector = fs.FileSelector(root.path, recursive=True)
    start = len(root.path) + 1
    for info in ask(lambda: root.filesystem.get_file_info(selector), root.uri):
        if info.type == fs.FileType.File:
            found.add(info.path[start:], partial(_facts_of_info, info))


def _facts_of_info(info: fs.FileInfo) -> tuple[int | None, int | None]:
    return info.size, info.mtime_ns


def _walk_local(root: str, found: Found) -> None:
    """Walk with `os.scandir`: a million files take seconds, as only pictures cost a `stat`."""
    # Path below root, and the identity of the folders above: a link to one of those would never end.
    folders: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while folders:
        folder, above = folders.pop()
        try:
            here = os.stat(os.path.join(root, folder))
            entries = list(os.scandir(os.path.join(root, folder)))
        except OSError as error:
            raise ConfigError(f"images: {os.path.join(root, folder)!a} cannot be listed: {error.strerror}") from None
        above = (*above, (here.st_dev, here.st_ino))
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if not _is_folder(entry):
                found.add(path, partial(_facts_of_entry, entry))
            elif not entry.is_symlink() or _identity(entry) not in above:
                folders.append((path, above))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points at itself
        return False


def _identity(entry: os.DirEntry[str]) -> tuple[int, int]:
    target = entry.stat()
    return target.st_dev, target.st_ino


def _facts_of_entry(entry: os.DirEntry[str]) -> tuple[int | None, int | None]:
    try:
        target = entry.stat()
    except OSError:  # a dangling link
        return None, None
    return target.st_size, target.st_mtime_ns
