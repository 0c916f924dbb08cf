"""Handle Ctrl-C and SIGTERM: the first signal raises an exception where the program is, and later ones do not disturb its cleanup."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_seen: int | None = None
"""The signal that :func:`raised` or :func:`noticed` has raised as an exception; None before."""


class Interrupted(KeyboardInterrupt):
    """A signal told this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def raised() -> Iterator[None]:
    """Context of a command: its first SIGINT or SIGTERM raises :class:`Interrupted`; later ones only print a line."""

    def handle(number: int, _: FrameType | None) -> None:
        global _seen
        if _seen is not None:
            _answer(number, None)
            return
        _seen = number
        raise Interrupted(number)

    global _seen
    try:
        with _handled_by(handle):
            yield
    except KeyboardInterrupt:
        # Ray's waiting functions raise their own KeyboardInterrupt in place of the handler's exception.
        raise Interrupted(signal.SIGINT if _seen is None else _seen) from None
    finally:
        _seen = None


@contextmanager
def noticed() -> Iterator[None]:
    """Context of a call from a program, such as a notebook: Ctrl-C raises Python's own KeyboardInterrupt, and :func:`check` knows of it.

    If the program handles SIGINT itself, or runs in :func:`raised`, nothing is changed.
    """
    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        global _seen
        _seen = number
        signal.default_int_handler(number, frame)

    global _seen
    try:
        with kept():
            signal.signal(signal.SIGINT, handle)
            yield
            check()
    except Interrupted:
        raise KeyboardInterrupt from None
    finally:
        _seen = None


@contextmanager
def shielded() -> Iterator[None]:
    """Context for cleanup: signals only print a line, and nothing is raised."""
    with _handled_by(_answer):
        yield


@contextmanager
def kept() -> Iterator[None]:
    """Context that restores the signal handlers at its end, whatever a library has set meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(number, signal.getsignal(number)) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            if handler is not None:  # None: this handler was not set by Python
                signal.signal(number, handler)


def check() -> None:
    """Raise :class:`Interrupted` if a signal came. Its first exception may have been dropped, by Python in a destructor or by a library."""
    if _seen is not None:
        raise Interrupted(_seen)


@contextmanager
def _handled_by(handler: signal._HANDLER) -> Iterator[None]:
    with kept():
        # Only the main thread may set handlers, and handlers run only there.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, handler)
        yield


def _answer(number: int, _: FrameType | None) -> None:
    # This avoids `print` and `logging`, because the signal may have come in the middle of either.
    os.write(2, f"{signal.Signals(number).name}: already stopping, this takes some seconds\n".encode())
