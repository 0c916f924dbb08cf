"""Turn a URI, which is a local path or an S3 address, into a path and a filesystem.

A :class:`Location` is a file or folder. Other modules join names to it, and read, write and list through it.

s3fs takes a second to import and is needed only where the requester pays, so it is imported then: `raycluster --help` must answer at once.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from raycluster.config import StorageConfig
from raycluster.errors import ArtifactError, ConfigError, MissingFileError
from raycluster.storage import s3

DRAFT = ".tmp"
"""Suffix of the name of a local file that is being written."""


@dataclass(frozen=True)
class Location:
    """A file or folder in some storage. It is cheap to send to Ray tasks, because the filesystem is created where it is used."""

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
        """The bucket and the key of an S3 address. The key is empty for the bucket itself."""
        bucket, _, key = self.path.partition("/")
        return bucket, key

    @property
    def located_options(self) -> StorageConfig:
        """The options, with the region of the bucket of this S3 address."""
        return s3.located(self.options, self.bucket_and_key[0])

    def __truediv__(self, name: str) -> Location:
        return Location(f"{self.path.rstrip('/')}/{name}", self.scheme, self.options)

    def exists(self) -> bool:
        """Return whether a file or folder exists here."""
        return self.filesystem.get_file_info(self.path).type != fs.FileType.NotFound

    def is_file(self) -> bool:
        """Return whether a file exists here."""
        return self.filesystem.get_file_info(self.path).type == fs.FileType.File

    def list(self, suffix: str = "", recursive: bool = False) -> list[Location]:
        """Return the files below this folder with names that end in `suffix`, sorted by path; none if the folder is absent."""
        selector = fs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        infos = self.filesystem.get_file_info(selector)
        paths = sorted(i.path for i in infos if i.type == fs.FileType.File and i.path.endswith(suffix))
        return [Location(path, self.scheme, self.options) for path in paths]

    def folders(self) -> tuple[Location, ...]:
        """Return the folders directly in this one, sorted by path; none if the folder is absent."""
        infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        paths = sorted(i.path.rstrip("/") for i in infos if i.type == fs.FileType.Directory)
        return tuple(Location(path, self.scheme, self.options) for path in paths)

    def sizes(self) -> tuple[int, ...]:
        """Return the size in bytes of each file below this folder, in any order."""
        infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True, recursive=True))
        return tuple(i.size for i in infos if i.type == fs.FileType.File)

    def read_bytes(self) -> bytes:
        """Return the content of the file. Raises :class:`FileNotFoundError` if there is none."""
        content = self.read_if_there()
        if content is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such file", self.uri)
        return content

    def read_if_there(self) -> bytes | None:
        """Return the content of the file; None if there is none."""
        if self.scheme != "file":
            found = s3.get(self.located_options, self.path)
            return None if found is None else found[0]
        try:
            return Path(self.path).read_bytes()
        except FileNotFoundError:
            return None

    def read_verified(self, sha256: str) -> bytes:
        """Return the content of a file of a model; raises :class:`ArtifactError` if the file is missing or has another hash."""
        try:
            content = self.read_bytes()
        except FileNotFoundError:
            raise MissingFileError(
                f"{self.uri} is missing; restore it, or delete the folder _stages of its run and run again"
            ) from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ArtifactError(
                f"{self.uri} is not the file that model.json describes (sha256 differs); restore it, or delete the folder _stages of its run and run again"
            )
        return content

    def write_bytes(self, data: bytes | pa.Buffer) -> None:
        """Write the file atomically: readers see the old file or the new one, never a part."""
        with self.replacing() as (filesystem, path), filesystem.open_output_stream(path) as stream:
            stream.write(data)

    def create(self, data: bytes) -> bool:
        """Write the file only if it is absent, and return whether that happened: exactly one of several racing writers gets True.

        A reader may find a local file empty for a moment. (A hard link would make it appear with its content, but exFAT, SMB and
        gcsfuse have no hard links.)
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
        """Replace the content `old` by `new`, and return whether that happened: exactly one of several racing writers gets True.

        Returns False if the file is absent or holds something else. If `old` and `new` have the same length, a reader of a local file
        never finds it half-written.
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
        """Return the file, parsed as JSON. Raises :class:`ArtifactError` if it is not JSON."""
        return parse_json(self.read_bytes(), self)

    def write_json(self, value: Any) -> None:
        """Write `value` as indented JSON, atomically."""
        self.write_bytes((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def write_table(self, table: pa.Table, row_group_size: int | None = None) -> None:
        """Write `table` as one Parquet file, atomically.

        The file is made in memory: a bucket would keep what was written of it before an error, which is a valid file with fewer rows.
        """
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", row_group_size=row_group_size)
        self.write_bytes(sink.getvalue())

    def delete(self) -> None:
        """Delete this file or folder if it exists."""
        info = self.filesystem.get_file_info(self.path)
        if info.type == fs.FileType.File:
            self.filesystem.delete_file(self.path)
        elif info.type == fs.FileType.Directory:
            self.filesystem.delete_dir(self.path)

    def replacing(self) -> _Replacing:
        """Return a context that gives `(filesystem, path)` to write the file to; at its end the new file replaces the old one.

        If the body raises, a local file is not replaced.
        """
        return _Replacing(self)


@contextmanager
def _locked(file: IO[bytes]) -> Iterator[None]:
    """Context that excludes all other processes of this host, and of the file server's other clients, for the same file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)  # closing the file releases it
    except OSError as error:
        # Some network filesystems are mounted without file locks; there two writers may race for a millisecond.
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    yield


class _Replacing:
    """Context that writes a file beside its place and then moves it there. On S3 it writes in place, because an upload is atomic."""

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


def parse_json(content: bytes, file: Location) -> Any:
    """Return the content of a JSON file. Raises :class:`ArtifactError` if it is none."""
    try:
        return json.loads(content)
    except ValueError as error:
        raise ArtifactError(f"{file.uri} is damaged ({error}); restore it, or delete it and run again") from None


def delete_files(files: Sequence[Location]) -> None:
    """Delete files of one storage. Absent ones are no error."""
    if files and files[0].scheme != "file":
        bucket = files[0].bucket_and_key[0]
        return s3.delete(files[0].located_options, bucket, [file.bucket_and_key[1] for file in files])
    for file in files:
        file.delete()


def locate(uri: str, options: StorageConfig | None = None) -> Location:
    """Return the location that `uri` names: an `s3://` address, a `file://` address or a local path (`~` allowed).

    If `options` name no S3 server, the AWS environment variables of this process may. Raises :class:`ConfigError` for any other scheme.
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
    """Return the folder on this machine for files that any run can create again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raycluster"


def impatient_filesystem(place: Location) -> fs.FileSystem:
    """Return a client for `place` that gives up within ten seconds. It is for asking whether a storage answers, not for work."""
    return place.filesystem if place.scheme == "file" else _s3_client(place.located_options, patient=False)


def _s3_client(options: StorageConfig, patient: bool = True) -> fs.FileSystem:
    """Return Arrow's S3 client or, if the requester pays, s3fs wrapped as an Arrow filesystem."""
    if not options.requester_pays:
        return s3.filesystem(options, patient)
    from raycluster.storage import s3_requester_pays as s3_python

    return s3_python.arrow_filesystem(options)


def read_table(files: list[Location], columns: list[str] | None = None) -> pa.Table:
    """Return the rows of several Parquet files of one storage, in the order given. A column that a file does not have is null there."""
    return pa.concat_tables(iter_tables(files, columns), promote_options="default")


def iter_tables(files: list[Location], columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield the same rows file by file, for tables larger than memory."""
    for file in files:
        # pq.read_table would ask for the size of the file twice.
        with pq.ParquetFile(file.path, filesystem=file.filesystem, pre_buffer=True) as parquet:
            yield parquet.read(columns)
