"""Run folders below what a run reads: their files are no input."""

from __future__ import annotations

import os

from raycluster.storage import Location


def inside(place: Location, folder: Location) -> bool:
    """Whether a place is that folder or lies below it, links resolved."""
    if place.scheme != folder.scheme:
        return False
    path, above = (os.path.realpath(each.path) if each.scheme == "file" else each.path for each in (place, folder))
    return f"{path}/".startswith(f"{above.rstrip('/')}/")


def without_runs(source: Location, files: list[Location], output: Location) -> list[Location]:
    """The files found below `source`, but for those of run folders: of `output`, and of folders that hold `_stages`.

    A run folder that `source` is or lies in is not left out: then the user named it.
    """
    marked = {file.path.partition("/_stages/")[0] for file in files if "/_stages/" in file.path}
    runs = [output, *(Location(path, source.scheme, source.options) for path in sorted(marked))]
    runs = [run for run in runs if not inside(source, run)]
    folders = {file.parent for file in files}
    own = {folder for folder in folders if any(inside(folder, run) for run in runs)}
    return [file for file in files if file.parent not in own]
