"""Weights in object storage: copy them to this machine once, because open_clip reads only local files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from filelock import FileLock
from pyarrow import fs

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError
from raycluster.section import fingerprint
from raycluster.storage.location import Location, locate, user_cache


def local_copy(uri: str, storage: StorageConfig | None, field: str) -> Path:
    """Return a local path of the file or folder at an `s3://` address. From a folder, only files directly in it are copied.

    The first call on a machine copies it to the user's cache folder; a later call copies it again if it has changed in storage.
    Raises :class:`ConfigError`, which names `field`, if nothing is there or it cannot be read.
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
    # The actors of a node start together, and the lock lets one of them copy.
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
