"""Find the pictures below a folder or an S3 prefix."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from raycluster.errors import ConfigError
from raycluster.images.containers import damaged
from raycluster.images.fetch import retry
from raycluster.images.listing.bucket import list_objects
from raycluster.images.listing.columns import Labels, Rows, folder_of
from raycluster.images.listing.run_folders import inside
from raycluster.storage.location import Location
from raycluster.storage.s3_errors import MENDABLE, cause_of

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})

T = TypeVar("T")


def walk(
    root: Location, info: fs.FileInfo, labels: Labels, write: Callable[..., None], output: Location | None = None
) -> Counter[str]:
    """Write the pictures at or below `root` in the order of their image_ids, and return the number of other files of each kind.

    Hidden files, and all files in hidden folders, count as others. Links to files and folders are followed. A link to an absent
    target is listed as a picture without a size, and fetching it decides its status. Files in `output`, the run folder, are neither
    listed nor counted, unless `root` itself lies there. `write(rows, key)` takes rows of schema `LISTING` and a key by which they are
    put in order.
    """
    if info.type == fs.FileType.Directory:
        list_folder = _list_local if root.scheme == "file" else _list_bucket
        return list_folder(root, labels, write, output)
    others: Counter[str] = Counter()
    if is_picture(info.base_name, others):
        rows, base = Rows(root.uri, write), root.parent.uri.rstrip("/")
        modified = None if info.mtime_ns is None else info.mtime_ns // 1000
        rows.add(info.base_name, f"{base}/{info.base_name}", info.size, modified, None)
        rows.flush()
    return others


def _list_local(root: Location, labels: Labels, write: Callable[..., None], output: Location | None) -> Counter[str]:
    others: Counter[str] = Counter()
    rows, base = Rows(root.uri, write), root.uri.rstrip("/")
    for path in _walk_local(root.path, output):
        if is_picture(path, others):
            size, modified = _facts(f"{root.path}/{path}")
            rows.add(path, f"{base}/{path}", size, modified, folder_of(path) if labels else None)
    rows.flush()
    return others


def _list_bucket(root: Location, labels: Labels, write: Callable[..., None], output: Location | None) -> Counter[str]:
    others: Counter[str] = Counter()
    base, prefix = root.uri.rstrip("/"), root.bucket_and_key[1]
    start = len(prefix) + 1 if prefix else 0
    own = ""
    if output is not None and inside(output, root) and not inside(root, output):
        own = f"{output.path[len(root.path) + 1 :]}/"
    for objects in list_objects(root, call_storage):
        # Pages come in no order. Each is a range of keys of its own, so its first id puts all of it in its place.
        rows = Rows(root.uri, partial(write, key=objects[0].key[start:] if objects else ""))
        for each in objects:
            path = each.key[start:]
            if not (own and path.startswith(own)) and is_picture(path, others):
                label = folder_of(path) if labels else None
                rows.add(path, f"{base}/{path}", each.size, each.modified_us, label, each.etag or None)
        rows.flush()
    return others


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


def _walk_local(root: str, output: Location | None) -> Iterator[str]:
    """Yield the paths of the files below root, relative to it, in the order of their characters.

    `os.scandir` lists a million files in seconds, because only pictures cost a `stat`. Memory holds the names of the files of one folder,
    and of the folders above it.
    """
    local = output is not None and output.scheme == "file" and os.path.isdir(output.path)
    own = _identity(output.path) if output is not None and local else None
    # The files and folders that are still to be visited, the next one last. The name of a folder ends in a slash. The identities of the
    # folders above are kept, because following a link to one of those would never end.
    left: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while left:
        path, above = left.pop()
        if path and not path.endswith("/"):
            yield path
            continue
        try:
            here = _identity(os.path.join(root, path))
            if path and (here == own or here in above):
                continue
            with os.scandir(os.path.join(root, path)) as entries:
                names = [f"{path}{entry.name}/" if _is_folder(entry) else f"{path}{entry.name}" for entry in entries]
        except OSError as error:
            raise ConfigError(
                f"images: {os.path.join(root, path)!a} cannot be listed: {error.strerror}; make it readable, or give `images` without it"
            ) from None
        left += [(name, (*above, here)) for name in sorted(names, reverse=True)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points at itself
        return False


def _identity(path: str) -> tuple[int, int]:
    target = os.stat(path)
    return target.st_dev, target.st_ino


def _facts(path: str) -> tuple[int | None, int | None]:
    """Return size in bytes and modification time in microseconds since 1970 UTC."""
    try:
        target = os.stat(path)
    except OSError:  # a dangling link
        return None, None
    return target.st_size, target.st_mtime_ns // 1000
