"""What earlier listings have found in tars: a tar whose size and ETag are known is not read again."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow as pa

from raycluster.images.fetch import retry
from raycluster.images.listing.columns import Labels
from raycluster.images.listing.tars import TarListing, list_tar
from raycluster.images.listing.walk import call_storage
from raycluster.section import fingerprint
from raycluster.storage import s3
from raycluster.storage.location import Location, delete_files

FOLDER = "tars"
"""Folder below that of the manifests."""
VERSION = 1
"""Changes when a tar would be listed in another way."""
_OTHERS = b"others"


def list_known_tar(file: Location, labels: Labels, folder: Location | None) -> TarListing:
    """Return the content of a tar: from `folder` if it was listed before as it is now; else from the tar, and it is kept in `folder`.

    Without a folder nothing is kept. Raises as :func:`raycluster.images.listing.tars.list_tar`, and :class:`StorageError`.
    """
    if folder is None:
        return call_storage(lambda: list_tar(file, labels), file.uri)
    name = call_storage(lambda: _name(file, labels), file.uri)
    kept = folder / name
    known = retry(kept.read_if_there, kept.uri)
    if known is not None:
        return _parsed(known, name)
    found = call_storage(lambda: list_tar(file, labels), file.uri)
    retry(lambda: kept.write_bytes(_formatted(found)), kept.uri)
    return TarListing(found.rows, found.others, name)


def forget_tars(folder: Location, kept: frozenset[str]) -> None:
    """Delete what is known of tars that have changed or are gone: all files but `kept`."""
    delete_files([file for file in folder.list(suffix=".arrow") if file.name not in kept])


def _name(file: Location, labels: Labels) -> str:
    """Return a file name that changes with the tar: with its size and ETag, on a disk with its size and the time of its last change."""
    info = file.filesystem.get_file_info(file.path)
    state = info.mtime_ns if file.scheme == "file" else s3.etag(file.located_options, file.path)
    return f"{fingerprint(VERSION, file.uri, info.size, state, labels)}.arrow"


def _formatted(found: TarListing) -> bytes:
    rows = found.rows.replace_schema_metadata({_OTHERS: json.dumps(found.others)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def _parsed(content: bytes, name: str) -> TarListing:
    rows = pa.ipc.open_stream(content).read_all()
    others = Counter(json.loads(rows.schema.metadata[_OTHERS]))
    return TarListing(rows.replace_schema_metadata(None), others, name)
