"""Tell dead credentials from a private object. Both are a 403; the one must stop the run, the other is the fate of one picture.

Arrow asks for an object by HEAD, whose 403 has no body: a dead key reads ACCESS_DENIED as a private object does. Two questions decide. A
listing has a body, so that AWS gives a dead key its true name there. Where it is refused as well, something that this process could read
before is asked for again: refused too, it is the credentials.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

from pyarrow import fs

from raycluster.config import StorageConfig
from raycluster.errors import RayclusterError
from raycluster.storage import Location

PERIOD_S = 10.0
"""How long an answer holds: a prefix of a million private objects must not cost as many questions."""

_readable: dict[StorageConfig, Location] = {}
_verdicts: dict[StorageConfig, tuple[float, str | None]] = {}
_lock = threading.Lock()


class CredentialsError(RayclusterError):
    """The storage refuses what it gave before: the credentials died (exit code 1)."""


def remember(location: Location) -> None:
    """Note that this file could be read just now."""
    if location.scheme != "file":
        _readable[location.options] = location


def check(refused: Location) -> None:
    """After a 403: return if only this object is private.

    Raises :class:`CredentialsError` if nothing can be read any more and :class:`OSError` if the storage does not answer.
    """
    with _lock:
        asked, verdict = _verdicts.get(refused.options, (-PERIOD_S, None))
        if time.monotonic() - asked >= PERIOD_S:
            verdict = _dead(refused)
            _verdicts[refused.options] = (time.monotonic(), verdict)
    if verdict:
        raise CredentialsError(
            f"the storage refuses the credentials ({verdict}), at {refused.uri}; renew them and run the command again: "
            "what is finished is kept, and no picture was marked failed"
        )


def _dead(refused: Location) -> str | None:
    """What the storage says of dead credentials; None if they live, or if nothing is known that they could read before."""
    listing = _refusal(lambda: refused.filesystem.get_file_info(fs.FileSelector(refused.path, allow_not_found=True)))
    if listing is None:
        return None
    if listing != _PRIVATE:
        return listing
    before = _readable.get(refused.options)
    return None if before is None else _refusal(lambda: before.filesystem.get_file_info(before.path))


_PRIVATE = "AccessDenied"
"""How a refusal reads that may concern one object or prefix only."""


def _refusal(question: Callable[[], object]) -> str | None:
    """The word by which the storage refuses a question; None if it answers. Raises :class:`OSError` for any other failure."""
    try:
        question()
    except FileNotFoundError:
        return None
    except PermissionError:  # s3fs' word for it
        return _PRIVATE
    except OSError as error:
        text = str(error)
        if "ACCESS_DENIED" in text:
            return _PRIVATE
        # Arrow has names of its own for some, and gives the server's for the others.
        named = re.search(r"ExceptionName: (\w+)", text) or re.search(
            r"AWS Error (INVALID_\w+|SIGNATURE_\w+|EXPIRED_\w+)", text
        )
        if named and (named[0].startswith("AWS") or "HTTP status 403" in text or "Token" in named[1]):
            return named[1]
        raise
    return None
