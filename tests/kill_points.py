"""End a process, as it seems to what it has written, at each write and delete in turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from raycluster.storage.location import Location, _Replacing


class Killed(BaseException):
    """The end of the process."""


@contextmanager
def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kill the process at the write or delete number `step`: before it, when a file is written but not in its place, or after it."""
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == step:
            raise Killed

    delete, leave = Location.delete, _Replacing.__exit__

    def counted_delete(self: Location) -> None:
        count()
        delete(self)
        count()

    def counted_exit(self: _Replacing, *error: Any) -> Any:
        count()
        leave(self, *error)
        count()

    with monkeypatch.context() as patch:
        patch.setattr(Location, "delete", counted_delete)
        patch.setattr(_Replacing, "__exit__", counted_exit)
        yield
