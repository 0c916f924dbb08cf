"""Find the pictures below a folder or an S3 prefix."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from raycluster import s3
from raycluster.errors import ConfigError
from raycluster.images.bucket import list_objects
from raycluster.images.columns import Labels, Rows, folder_of, in_order
from raycluster.images.fetch import retry
from raycluster.images.reading import damaged
from raycluster.images.run_folders import inside
from raycluster.storage import Location

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})

T = TypeVar("T")


def walk(
    root: Location, info: fs.FileInfo, labels: Labels, seen: Callable[[int], None], output: Location | None = None
) -> tuple[pa.Table, Counter[str]]:
    """Pictures at or below `root` (schema `LISTING`, sorted by image_id), and how many other files of each kind there are.

    Hidden files, and all files in hidden folders, count as others. Linked files and folders are followed; a link whose
    target is absent is a picture without a size, whose fate shows when it is fetched. `seen`: as in :class:`Rows`. What lies
    in `output`, the run folder, is neither a picture nor counted, unless `root` itself lies there.
    """
    others: Counter[str] = Counter()
    if info.type != fs.FileType.Directory:
        root = root.parent
    rows, base = Rows(root.uri, seen), root.uri.rstrip("/")
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
        for objects in list_objects(root, ask):
            for each in objects:
                path = each.key[start:]
                if own and path.startswith(f"{own}/"):
                    continue
                if is_picture(path, others):
                    label = folder_of(path) if labels else None
                    rows.add(path, f"{base}/{path}", each.size, each.modified_us, label, each.etag or None)
    return in_order(rows.table(), "image_id"), others


def is_picture(path: str, others: Counter[str], suffixes: frozenset[str] = PICTURE_SUFFIXES) -> bool:
    """Whether a path relative to the prefix is a picture by its name; otherwise it is counted in `others`."""
    suffix = os.path.splitext(path)[1].lower()
    hidden = path.startswith(".") or "/." in path
    if not hidden and suffix in suffixes:
        return True
    others["hidden" if hidden else suffix or "without suffix"] += 1
    return False


def ask(operation: Callable[[], T], uri: str) -> T:
    """Call the storage about `uri`, patiently; what the user can mend (no permission, a damaged file) is a ConfigError."""

    def attempt() -> T:
        try:
            return operation()
        except pa.ArrowException as error:
            raise ConfigError(f"images: {uri}: {error}") from None
        except OSError as error:
            if any(name in str(error) for name in s3.REFUSALS):
                remedy = (
                    "; correct the credentials (AWS variables or profile), `storage`, or what the bucket allows them"
                )
                raise ConfigError(f"images: {uri} cannot be read: {error}{remedy}") from None
            if isinstance(error, PermissionError | FileNotFoundError) or damaged(error):
                raise ConfigError(f"images: {uri} cannot be read: {error}") from None
            raise

    return retry(attempt, uri)


def _walk_local(root: str, output: Location | None) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Walk with `os.scandir`: a million files take seconds, as only pictures cost a `stat`. Yields paths below root."""
    # Path below root, and the identity of the folders above: a link to one of those would never end.
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
            raise ConfigError(f"images: {os.path.join(root, folder)!a} cannot be listed: {error.strerror}") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points at itself
        return False


def _identity(entry: os.DirEntry[str] | Path) -> tuple[int, int]:
    target = entry.stat()
    return target.st_dev, target.st_ino


def _facts(entry: os.DirEntry[str]) -> tuple[int | None, int | None]:
    """Size, and modification time in microseconds."""
    try:
        target = entry.stat()
    except OSError:  # a dangling link
        return None, None
    return target.st_size, target.st_mtime_ns // 1000
