"""Weights in object storage: copied to this machine once, for open_clip reads files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from filelock import FileLock
from pyarrow import fs

from raycluster.config import StorageConfig, fingerprint
from raycluster.errors import ConfigError
from raycluster.storage import Location, locate, user_cache


def local_copy(uri: str, storage: StorageConfig | None, field: str) -> Path:
    """The file or folder at an `s3://` address as a path of this machine; of a folder, the files that lie directly in it.

    It is copied to the user's cache folder at the first call of a machine, and again when it has changed there. Raises
    :class:`ConfigError`, naming `field`, if nothing is there or it cannot be read.
    """
    place = locate(uri, storage)
    try:
        is_file = place.is_file()
        files = [place] if is_file else place.list()
        if not files:
            raise ConfigError(
                f"{field}: nothing is at {place.uri}; give the address of a checkpoint or an open_clip folder"
            )
        folder = _copied(place, files)
    except OSError as error:
        raise ConfigError(
            f"{field}: {place.uri} cannot be read ({' '.join(str(error).split())[:300]}); check the address, `storage:` and the credentials"
        ) from None
    return folder / place.name if is_file else folder


def _copied(place: Location, files: list[Location]) -> Path:
    infos = place.filesystem.get_file_info([file.path for file in files])
    version = fingerprint(place.uri, place.options.endpoint_url, [[i.base_name, i.size, i.mtime_ns] for i in infos])
    target = user_cache() / "weights" / version
    target.parent.mkdir(parents=True, exist_ok=True)
    # The actors of a node start together; one of them copies.
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                draft = Path(scratch) / version
                draft.mkdir()
                for file in files:
                    fs.copy_files(
                        file.path,
                        str(draft / file.name),
                        source_filesystem=file.filesystem,
                        destination_filesystem=fs.LocalFileSystem(),
                    )
                draft.rename(target)
    return target
