"""Find the pictures below a folder or an S3 prefix."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from raycluster.errors import ConfigError
from raycluster.images.containers import damaged
from raycluster.images.fetch import retry
from raycluster.images.listing.bucket import list_objects
from raycluster.images.listing.columns import Labels, Rows, folder_of, in_order
from raycluster.images.listing.run_folders import inside
from raycluster.storage.location import Location
from raycluster.storage.s3_errors import MENDABLE, cause_of

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})

T = TypeVar("T")


def walk(
    root: Location, info: fs.FileInfo, labels: Labels, progress: Callable[[int], None], output: Location | None = None
) -> tuple[pa.Table, Counter[str]]:
    """Return the pictures at or below `root` (schema `LISTING`, sorted by image_id), and the number of other files of each kind.

    Hidden files, and all files in hidden folders, count as others. Links to files and folders are followed. A link to an absent
    target is listed as a picture without a size, and fetching it decides its status. `progress`: as in :class:`Rows`. Files in
    `output`, the run folder, are neither listed nor counted, unless `root` itself lies there.
    """
    others: Counter[str] = Counter()
    if info.type != fs.FileType.Directory:
        root = root.parent
    rows, base = Rows(root.uri, progress), root.uri.rstrip("/")
    if info.type != fs.FileType.Directory:
        if is_picture(info.base_name, others):
            modified = None if info.mtime_ns is None else info.mtime_ns // 1000
            rows.add(info.base_name, f"{base}/{info.base_name}", info.size, modified, None)
    elif root.scheme == "file":
        for path, entry in _walk_local(root.path, output):
            if is_picture(path, others):
                size, modified = _facts(entry)
                rows.add(path, f"{base}/{path}", size, modified, folder_of(path) if labels else None)
    else:
        start = len(root.bucket_and_key[1]) + 1 if root.bucket_and_key[1] else 0
        own = (
            ""
            if output is None or inside(root, output) or not inside(output, root)
            else output.path[len(root.path) + 1 :]
        )
        for objects in list_objects(root, call_storage):
            for each in objects:
                path = each.key[start:]
                if own and path.startswith(f"{own}/"):
                    continue
                if is_picture(path, others):
                    label = folder_of(path) if labels else None
                    rows.add(path, f"{base}/{path}", each.size, each.modified_us, label, each.etag or None)
    return in_order(rows.table(), "image_id"), others


def is_picture(path: str, others: Counter[str], suffixes: frozenset[str] = PICTURE_SUFFIXES) -> bool:
    """Return whether a path relative to the prefix has a picture's name; if not, count it in `others`."""
    suffix = os.path.splitext(path)[1].lower()
    hidden = path.startswith(".") or "/." in path
    if not hidden and suffix in suffixes:
        return True
    others["hidden" if hidden else suffix or "without suffix"] += 1
    return False


def call_storage(operation: Callable[[], T], uri: str) -> T:
    """Call the storage about `uri`, with retries. Raises ConfigError for what the user can mend (no permission, a damaged file)."""

    def attempt() -> T:
        try:
            return operation()
        except pa.ArrowException as error:
            raise ConfigError(
                f"images: {uri} cannot be read: {error}; correct the path, or write the file again"
            ) from None
        except OSError as error:
            if cause_of(error) in MENDABLE:
                remedy = "; correct the name of the bucket, the credentials (AWS variables or profile), their permissions, or `storage`"
                raise ConfigError(f"images: {uri} cannot be read: {error}{remedy}") from None
            if isinstance(error, PermissionError | FileNotFoundError) or damaged(error):
                raise ConfigError(
                    f"images: {uri} cannot be read: {error}; check that it exists, may be read and is not damaged"
                ) from None
            raise

    return retry(attempt, uri)


def _walk_local(root: str, output: Location | None) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the files below root, with their paths relative to it.

    `os.scandir` lists a million files in seconds, because only pictures cost a `stat`.
    """
    # Path below root, and the identities of the folders above it: following a link to one of those would never end.
    folders: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    local = output is not None and output.scheme == "file" and os.path.isdir(output.path)
    own = _identity(Path(output.path)) if output is not None and local else None
    while folders:
        folder, above = folders.pop()
        try:
            here = _identity(Path(root, folder))
            if folder and here == own:
                continue
            above = (*above, here)
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if not _is_folder(entry):
                        yield path, entry
                    elif not entry.is_symlink() or _identity(entry) not in above:
                        folders.append((path, above))
        except OSError as error:
            raise ConfigError(
                f"images: {os.path.join(root, folder)!a} cannot be listed: {error.strerror}; make it readable, or give `images` without it"
            ) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points at itself
        return False


def _identity(entry: os.DirEntry[str] | Path) -> tuple[int, int]:
    target = entry.stat()
    return target.st_dev, target.st_ino


def _facts(entry: os.DirEntry[str]) -> tuple[int | None, int | None]:
    """Return size in bytes and modification time in microseconds since 1970 UTC."""
    try:
        target = entry.stat()
    except OSError:  # a dangling link
        return None, None
    return target.st_size, target.st_mtime_ns // 1000
