"""Ctrl-C and SIGTERM: raised once where the program is, and not again while it tidies up."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_seen: int | None = None
"""The signal that :func:`raised` or :func:`noticed` has raised."""


class Interrupted(KeyboardInterrupt):
    """A signal told this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def raised() -> Iterator[None]:
    """Context of a command: its first SIGINT or SIGTERM raises :class:`Interrupted`, later ones are answered by a line."""

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
        # Ray's waiting functions raise one of their own in place of the handler's.
        raise Interrupted(signal.SIGINT if _seen is None else _seen) from None
    finally:
        _seen = None


@contextmanager
def noticed() -> Iterator[None]:
    """Context of a call in somebody's program, such as a notebook: Ctrl-C is Python's own KeyboardInterrupt, and :func:`check` knows of it.

    Where the program handles SIGINT itself, or runs in :func:`raised`, nothing is changed.
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
    """Context in which something is brought to an end: signals are answered by a line, and nothing is raised."""
    with _handled_by(_answer):
        yield


@contextmanager
def kept() -> Iterator[None]:
    """Context at whose end the handlers are those of its beginning, whatever a library has set."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(number, signal.getsignal(number)) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            if handler is not None:  # None: not set by Python
                signal.signal(number, handler)


def check() -> None:
    """Raise the interrupt again if it came where exceptions are dropped: by Python in a destructor, or by a library."""
    if _seen is not None:
        raise Interrupted(_seen)


@contextmanager
def _handled_by(handler: signal._HANDLER) -> Iterator[None]:
    with kept():
        # Only the main thread may set handlers, and only there they run.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, handler)
        yield


def _answer(number: int, _: FrameType | None) -> None:
    # Not by `print` or `logging`: the signal may have come in the middle of either.
    os.write(2, f"{signal.Signals(number).name}: already stopping, this takes some seconds\n".encode())
