"""URI → filesystem. The only place that knows a local path from an S3 address.

A :class:`Location` is a file or folder; everything else joins names to it and reads, writes and lists through it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from raycluster import s3
from raycluster.config import StorageConfig
from raycluster.errors import ArtifactError, ConfigError, MissingFileError

DRAFT = ".tmp"
"""End of the name of a local file that is being written."""


@dataclass(frozen=True)
class Location:
    """A file or folder in some storage. Cheap to send to Ray tasks: the filesystem is made where it is used."""

    path: str
    """Absolute POSIX path (local), or `bucket/key` (S3); no trailing slash."""
    scheme: str = "file"
    options: StorageConfig = StorageConfig()

    @property
    def uri(self) -> str:
        """The address as a user would write it."""
        return self.path if self.scheme == "file" else f"{self.scheme}://{self.path}"

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def parent(self) -> Location:
        """The folder that holds this."""
        return Location(self.path.rsplit("/", 1)[0] or "/", self.scheme, self.options)

    @property
    def filesystem(self) -> fs.FileSystem:
        """Arrow's client for this storage. Raises :class:`OSError` if the bucket cannot be found."""
        return fs.LocalFileSystem() if self.scheme == "file" else _s3_client(self.located_options)

    @property
    def bucket_and_key(self) -> tuple[str, str]:
        """Of an S3 address the bucket and the key, which is empty for the bucket itself."""
        bucket, _, key = self.path.partition("/")
        return bucket, key

    @property
    def located_options(self) -> StorageConfig:
        """The options with the region of this S3 address' bucket."""
        return s3.located(self.options, self.bucket_and_key[0])

    def __truediv__(self, name: str) -> Location:
        return Location(f"{self.path.rstrip('/')}/{name}", self.scheme, self.options)

    def exists(self) -> bool:
        """Whether a file or folder is here."""
        return self.filesystem.get_file_info(self.path).type != fs.FileType.NotFound

    def is_file(self) -> bool:
        """Whether a file is here."""
        return self.filesystem.get_file_info(self.path).type == fs.FileType.File

    def list(self, suffix: str = "", recursive: bool = False) -> list[Location]:
        """Files below this folder whose names end in `suffix`, sorted by path; none if the folder is absent."""
        selector = fs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        infos = self.filesystem.get_file_info(selector)
        paths = sorted(i.path for i in infos if i.type == fs.FileType.File and i.path.endswith(suffix))
        return [Location(path, self.scheme, self.options) for path in paths]

    def read_bytes(self) -> bytes:
        """The whole file."""
        with self.filesystem.open_input_stream(self.path) as stream:
            return stream.read()

    def read_verified(self, sha256: str) -> bytes:
        """The whole file of a model; raises :class:`ArtifactError` if it is missing or not the one with this hash."""
        try:
            content = self.read_bytes()
        except FileNotFoundError:
            raise MissingFileError(f"{self.uri} is missing; restore it, or delete the folder and train again") from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ArtifactError(
                f"{self.uri} is not the file that model.json describes (sha256 differs); restore it or train again"
            )
        return content

    def write_bytes(self, data: bytes) -> None:
        """Write the whole file at once: readers see the old file or the new one, never a part."""
        with self.replacing() as (filesystem, path), filesystem.open_output_stream(path) as stream:
            stream.write(data)

    def create(self, data: bytes) -> bool:
        """Write the file only if it is absent: of several racing writers exactly one gets True.

        A reader may find a local file empty for a moment. (A hard link would appear with its content, but exFAT, SMB and gcsfuse
        have no hard links.)
        """
        if self.scheme != "file":
            return s3.create(self.located_options, self.path, data)
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        try:
            with open(self.path, "xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        return True

    def swap(self, old: bytes, new: bytes) -> bool:
        """Write `new` in place of the content `old`; False if the file is absent or holds something else: of several racing writers
        exactly one gets True. A reader of a local file finds nothing half-written if both are of one length.
        """
        if self.scheme != "file":
            return s3.swap(self.located_options, self.path, old, new)
        try:
            with open(self.path, "r+b", buffering=0) as file, _locked(file):
                # The file may have been deleted, and another created, since it was opened.
                if not os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)) or file.read() != old:
                    return False
                file.seek(0)
                file.write(new)
                file.truncate()
        except FileNotFoundError:
            return False
        return True

    def read_json(self) -> Any:
        """The file, parsed as JSON. Raises :class:`ArtifactError` if it is none."""
        try:
            return json.loads(self.read_bytes())
        except ValueError as error:
            raise ArtifactError(f"{self.uri} is damaged ({error}); restore it, or delete it and run again") from None

    def write_json(self, value: Any) -> None:
        """Write `value` as readable JSON, at once."""
        self.write_bytes((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def write_table(self, table: pa.Table, row_group_size: int | None = None) -> None:
        """Write one Parquet file at once."""
        with self.replacing() as (filesystem, path):
            pq.write_table(table, path, filesystem=filesystem, compression="zstd", row_group_size=row_group_size)

    def delete(self) -> None:
        """Remove this file or folder; absent is fine."""
        info = self.filesystem.get_file_info(self.path)
        if info.type == fs.FileType.File:
            self.filesystem.delete_file(self.path)
        elif info.type == fs.FileType.Directory:
            self.filesystem.delete_dir(self.path)

    def replacing(self) -> _Replacing:
        """Context `(filesystem, path)` to write the file in: it takes its place at the end; a local one not if the body raises."""
        return _Replacing(self)


@contextmanager
def _locked(file: IO[bytes]) -> Iterator[None]:
    """Context in which no other process of this host, or of the file server's clients, is in this context with the same file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)  # closing the file releases it
    except OSError as error:
        # Some network filesystems are mounted without file locks; there two writers may race for a millisecond.
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    yield


class _Replacing:
    """Context in which a file is written beside its place and then moved there (on S3 in place: an upload is atomic)."""

    def __init__(self, target: Location) -> None:
        self.target = target
        self.local = target.scheme == "file"
        head, _, tail = target.path.rpartition("/")
        self.path = f"{head}/.{tail}.{os.getpid()}{DRAFT}" if self.local else target.path

    def __enter__(self) -> tuple[fs.FileSystem, str]:
        if self.local:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
        return self.target.filesystem, self.path

    def __exit__(self, kind: object, *_: object) -> None:
        if not self.local:
            return
        if kind is None:
            os.replace(self.path, self.target.path)
        else:
            Path(self.path).unlink(missing_ok=True)


def locate(uri: str, options: StorageConfig | None = None) -> Location:
    """The place that `uri` names: an `s3://` address, a `file://` address or a local path (`~` allowed).

    Where `options` name no S3 server, the AWS variables of this process do. Raises :class:`ConfigError` for any other scheme.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        path = os.path.abspath(os.path.expanduser(rest if separator else uri))
        return Location(path, "file", StorageConfig())
    if scheme != "s3":
        raise ConfigError(f"{uri}: storage {scheme}:// is not supported; use a local path or s3://bucket/prefix")
    if not rest.strip("/"):
        raise ConfigError(f"{uri}: the bucket is missing; write s3://bucket/prefix")
    return Location(rest.rstrip("/"), "s3", s3.from_environment(options or StorageConfig()))


def user_cache() -> Path:
    """The folder of this machine for what any run can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raycluster"


def impatient_filesystem(place: Location) -> fs.FileSystem:
    """The client for `place` that gives up within ten seconds: for asking whether a storage answers, not for work."""
    return place.filesystem if place.scheme == "file" else _s3_client(place.located_options, patient=False)


def _s3_client(options: StorageConfig, patient: bool = True) -> fs.FileSystem:
    """Arrow's, or where the requester pays s3fs in its clothes."""
    if not options.requester_pays:
        return s3.filesystem(options, patient)
    from raycluster import s3_python  # slow to import

    return s3_python.arrow_filesystem(options)


def read_table(files: list[Location], columns: list[str] | None = None) -> pa.Table:
    """The rows of several Parquet files of one storage, in the order given."""
    tables = [pq.read_table(f.path, filesystem=f.filesystem, columns=columns, partitioning=None) for f in files]
    return pa.concat_tables(tables)


def iter_tables(files: list[Location], columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The same file by file, for tables larger than memory."""
    for file in files:
        yield pq.read_table(file.path, filesystem=file.filesystem, columns=columns, partitioning=None)
