"""Leave run folders out of a listing: files that a run has written are never its input."""

from __future__ import annotations

import os

from raycluster.storage.location import Location


def inside(place: Location, folder: Location) -> bool:
    """Return whether a place is the folder or lies below it, after links are resolved."""
    if place.scheme != folder.scheme:
        return False
    path, above = (os.path.realpath(each.path) if each.scheme == "file" else each.path for each in (place, folder))
    return f"{path}/".startswith(f"{above.rstrip('/')}/")


def without_runs(source: Location, files: list[Location], output: Location) -> list[Location]:
    """Return the files found below `source`, without those that lie in a run folder: in `output`, or in a folder that holds `_stages`.

    If `source` itself lies in a run folder, the user has named that folder, so its files are kept.
    """
    marked = {file.path.partition("/_stages/")[0] for file in files if "/_stages/" in file.path}
    runs = [output, *(Location(path, source.scheme, source.options) for path in sorted(marked))]
    runs = [run for run in runs if not inside(source, run)]
    folders = {file.parent for file in files}
    own = {folder for folder in folders if any(inside(folder, run) for run in runs)}
    return [file for file in files if file.parent not in own]
