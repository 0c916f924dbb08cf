"""Tell dead credentials from a private object. Both give a 403, but dead credentials stop the run and a private object fails one picture.

Arrow asks for an object with a HEAD request, and a 403 to HEAD has no body. So Arrow reports ACCESS_DENIED for a dead key as well as for a
private object. Two questions tell them apart. The first is a listing: its answer has a body, in which AWS names what is wrong with a dead
key. If the listing is only denied, the second question asks again for a file that this process could read before. If that is refused too,
the credentials are dead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pyarrow import fs

from raycluster.config import StorageConfig
from raycluster.errors import RayclusterError
from raycluster.storage.location import Location
from raycluster.storage.s3_errors import Cause, cause_of, refusal_name

PERIOD_S = 10.0
"""Seconds for which an answer holds. A prefix of a million private objects must not cost a million questions."""

_readable: dict[StorageConfig, Location] = {}
_verdicts: dict[StorageConfig, tuple[float, str | None]] = {}
_lock = threading.Lock()


class CredentialsError(RayclusterError):
    """The credentials no longer work: the storage refuses what it gave before (exit code 1)."""


def note_readable(location: Location) -> None:
    """Remember that this file could be read just now; :func:`check` may ask for it again."""
    if location.scheme != "file":
        _readable[location.options] = location


def check(refused: Location) -> None:
    """Find out what a 403 means; return if only this object is private.

    Raises :class:`CredentialsError` if nothing can be read any more, and :class:`OSError` if the storage does not answer.
    """
    with _lock:
        asked, verdict = _verdicts.get(refused.options, (-PERIOD_S, None))
        if time.monotonic() - asked >= PERIOD_S:
            verdict = _dead(refused)
            _verdicts[refused.options] = (time.monotonic(), verdict)
    if verdict:
        raise CredentialsError(
            f"the storage refuses the credentials ({verdict}), at {refused.uri}; renew them and run the command again: "
            "finished work is kept, and no picture was marked as failed"
        )


def _dead(refused: Location) -> str | None:
    """Return why the storage refuses the credentials; None if they work, or if no file is known that they could read before."""
    listing = _refusal(lambda: refused.filesystem.get_file_info(fs.FileSelector(refused.path, allow_not_found=True)))
    if listing is None:
        return None
    if listing != _PRIVATE:
        return listing
    before = _readable.get(refused.options)
    return None if before is None else _refusal(lambda: before.filesystem.get_file_info(before.path))


_PRIVATE = "AccessDenied"
"""Name of a refusal that may concern only one object or prefix."""


def _refusal(question: Callable[[], object]) -> str | None:
    """Return the name of the storage's refusal of a question; None if it answers. Raises :class:`OSError` for any other failure."""
    try:
        question()
    except FileNotFoundError:
        return None
    except PermissionError:  # s3fs raises this for every refusal
        return _PRIVATE
    except OSError as error:
        if cause_of(error) is Cause.DENIED:
            return _PRIVATE
        if (name := refusal_name(error)) is not None:
            return name
        raise
    return None
