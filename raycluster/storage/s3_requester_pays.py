"""s3fs for requester-pays buckets, which Arrow's S3 client cannot read.

The import is slow, so :mod:`raycluster.storage.location` does it only when it is needed.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import aiohttp
import s3fs
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from pyarrow import NativeFile, PythonFile, fs

from raycluster.config import StorageConfig
from raycluster.storage.s3 import addressing_style
from raycluster.storage.s3_errors import MENDABLE, Cause, cause_of


class _S3(s3fs.S3FileSystem):
    """s3fs with errors that distinguish what Arrow's client distinguishes: a refused object, dead credentials, a network that fails."""

    # Code that reads and writes through this class tries again by itself.
    retries = 2

    async def _call_s3(self, *arguments: Any, **named: Any) -> Any:
        with _plain_errors():
            return await super()._call_s3(*arguments, **named)


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except (BotoCoreError, HTTPClientError, aiohttp.ClientError) as error:
        raise OSError(errno.EIO, f"AWS Error: {error}") from error
    except PermissionError as error:
        cause = error.__cause__
        code = cause.response["Error"].get("Code", "") if isinstance(cause, ClientError) else ""
        # One private object is no reason to doubt the credentials.
        if cause_of(code) in MENDABLE - {Cause.DENIED}:
            raise OSError(errno.EIO, f"AWS Error {code}: {error}") from error
        raise PermissionError(errno.EACCES, f"{code}: {error}") from error


class _File:
    """A file of s3fs with a `read` that raises only :class:`OSError`."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        with _plain_errors():
            return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Handler(fs.FSSpecHandler):
    """Arrow's bridge to s3fs, without its checks before each call, which report every error as "there is no such file"."""

    def open_input_file(self, path: str) -> NativeFile:
        """Open a file for reading from any position."""
        return PythonFile(_File(self.fs.open(path, mode="rb")), mode="r")

    open_input_stream = open_input_file

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        """Return what lies in a folder."""
        depth = None if selector.recursive else 1
        found = self.fs.find(selector.base_dir, maxdepth=depth, withdirs=True, detail=True)
        if not found and not selector.allow_not_found:
            raise FileNotFoundError(selector.base_dir)
        return [self._create_file_info(path, info) for path, info in found.items() if path != selector.base_dir]


@lru_cache(maxsize=64)
def arrow_filesystem(options: StorageConfig) -> fs.FileSystem:
    """Return s3fs as an Arrow filesystem. `options` come from :func:`raycluster.storage.s3.located`."""
    client = _S3(
        anon=options.anonymous,
        endpoint_url=options.endpoint_url,
        requester_pays=options.requester_pays,
        client_kwargs={"region_name": options.region},
        config_kwargs={
            "s3": {"addressing_style": addressing_style(options)},
            "retries": {"mode": "standard", "max_attempts": 2},
            "connect_timeout": 10,
            "read_timeout": 30,
        },
        use_listings_cache=False,
        # Readers seek, so data that is read ahead would mostly be thrown away.
        default_fill_cache=False,
        default_cache_type="none",
    )
    return fs.PyFileSystem(_Handler(client))
