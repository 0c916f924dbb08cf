"""List the pictures in WebDataset shards (tars) from the headers of the members."""

from __future__ import annotations

import io
import re
import tarfile
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

from raycluster.errors import ConfigError
from raycluster.images.addresses import member_uri
from raycluster.images.listing.columns import LISTING, Labels, Rows, folder_of
from raycluster.storage.location import Location

MEMBER_SUFFIXES = ("jpg", "jpeg", "png", "webp")
"""Suffixes of pictures in WebDataset, in upper or lower case."""
LABEL = "cls"
LARGEST_LABEL = 1024
"""Most bytes of a label. A larger member is not taken for a label."""
BLOCK = {"file": 2**14, "s3": 2**20}
"""Bytes read at a time, by scheme. Larger content between headers is skipped. For smaller content, another request would take longer."""

_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
"""Key and extension, split at the first dot of the base name, as in the webdataset package."""


@dataclass(frozen=True)
class TarListing:
    """The content of a tar."""

    rows: pa.Table
    """The pictures, schema `LISTING`, in the order of the tar."""
    others: Counter[str]
    """Number of other members of each kind."""
    kept_as: str = ""
    """Name of the file in which this is kept for later listings; empty if it is not kept."""


def list_tar(file: Location, labels: Labels) -> TarListing:
    """Return the content of a shard.

    `image_id` is `<file name without .tar>/<key>`. The label is the content of the member `<key>.cls`; it takes precedence over
    `labels: folder`.

    Raises
    ------
    ConfigError
        The file is no tar, is damaged, or was cut short.
    OSError
        The storage fails; the caller tries again.
    """
    info = file.filesystem.get_file_info(file.path)
    modified = None if info.mtime_ns is None else info.mtime_ns // 1000
    with (
        file.filesystem.open_input_file(file.path) as raw,
        io.BufferedReader(raw, BLOCK[file.scheme]) as stream,
    ):
        size = raw.size()
        members, classes, others = _members(stream, file.uri)
    tables = [LISTING.empty_table()]
    rows, shard = Rows(file.uri, tables.append), file.name[: -len(".tar")]
    for key, first, length in members:
        label = classes.get(key) or (folder_of(key) if labels else None)
        rows.add(f"{shard}/{key}", member_uri(file.uri, first, length, size), length, modified, label)
    rows.flush()
    return TarListing(pa.concat_tables(tables), others)


def _members(stream: io.BufferedReader, uri: str) -> tuple[list[tuple[str, int, int]], dict[str, str], Counter[str]]:
    """Return key, first byte and length of every picture; the labels by key; the number of other members by kind."""
    pictures: list[tuple[str, int, int]] = []
    classes: dict[str, str] = {}
    others: Counter[str] = Counter()
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            last = -1
            for member in tar:
                if member.offset <= last or member.size < 0:
                    raise tarfile.ReadError(f"the header at byte {member.offset} leads back")
                last = member.offset
                # tarfile keeps every header that it has read.
                tar.members.clear()  # type: ignore[attr-defined]
                _sort_in(tar, member, pictures, classes, others)
            end = tar.offset
    except (tarfile.TarError, EOFError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(
            f"images: {uri} is no tar, or was cut short ({error}); write it again, uncompressed"
        ) from None
    # A damaged header ends the loop just as the end of the archive does, so check for the end mark.
    stream.seek(end)
    mark = stream.read(tarfile.BLOCKSIZE)
    if mark != bytes(tarfile.BLOCKSIZE):
        what = f"is damaged at byte {end}" if mark else "was cut short: its end mark is missing"
        raise ConfigError(f"images: {uri} {what}; write it again")
    return pictures, classes, others


def _sort_in(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    pictures: list[tuple[str, int, int]],
    classes: dict[str, str],
    others: Counter[str],
) -> None:
    if member.isdir():
        return
    match = _KEY.fullmatch(member.name.removeprefix("./"))
    extension = match[2].lower().rpartition(".")[2] if match else ""
    plain = member.isreg() and not member.issparse()
    if match and plain and extension in MEMBER_SUFFIXES:
        pictures.append((match[1], member.offset_data, member.size))
    elif match and plain and match[2].lower() == LABEL and member.size <= LARGEST_LABEL:
        content = tar.extractfile(member)
        label = content.read().decode("utf-8", "replace").strip() if content else ""
        if label:
            classes[match[1]] = label
    else:
        others[f".{extension}" if extension else "hidden" if "/." in f"/{member.name}" else "without suffix"] += 1
