"""s3fs, for what Arrow's S3 client cannot do: requester-pays. Slow to import; :mod:`raycluster.storage` does when it is needed."""

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
from raycluster.s3 import REFUSALS, addressing_style

_DENIED = ("AccessDenied", "AllAccessDisabled", "InvalidObjectState", "403")


class _S3(s3fs.S3FileSystem):
    """s3fs whose errors keep apart what Arrow's client keeps apart: a refused object, dead credentials, a network that fails."""

    # Whoever reads and writes here tries again himself.
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
        if code in REFUSALS and code not in _DENIED:
            raise OSError(errno.EIO, f"AWS Error {code}: {error}") from error
        raise PermissionError(errno.EACCES, f"{code}: {error}") from error


class _File:
    """A file of s3fs whose reads raise OSError only."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        with _plain_errors():
            return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Handler(fs.FSSpecHandler):
    """Arrow's bridge to s3fs, without the questions beforehand to which every error answers "there is no such file"."""

    def open_input_file(self, path: str) -> NativeFile:
        """A file to be read from any place."""
        return PythonFile(_File(self.fs.open(path, mode="rb")), mode="r")

    open_input_stream = open_input_file

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        """What lies in a folder."""
        depth = None if selector.recursive else 1
        found = self.fs.find(selector.base_dir, maxdepth=depth, withdirs=True, detail=True)
        if not found and not selector.allow_not_found:
            raise FileNotFoundError(selector.base_dir)
        return [self._create_file_info(path, info) for path, info in found.items() if path != selector.base_dir]


@lru_cache(maxsize=64)
def arrow_filesystem(options: StorageConfig) -> fs.FileSystem:
    """s3fs as a filesystem of Arrow. `options`: of :func:`raycluster.s3.located`."""
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
        # Readers seek: what is read ahead would mostly be thrown away.
        default_fill_cache=False,
        default_cache_type="none",
    )
    return fs.PyFileSystem(_Handler(client))
