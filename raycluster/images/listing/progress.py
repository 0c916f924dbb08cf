"""Show a count while a long operation runs."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

log = logging.getLogger(__name__)

EVERY_S = 5.0
"""Seconds between two lines in a log."""


@contextmanager
def image_progress(stage: str) -> Iterator[Callable[[int], None]]:
    """Yield a function that adds a number of images to a count, from any thread.

    A terminal shows the count as a bar; elsewhere a line is logged every few seconds.
    """
    lock, total, spoken = threading.Lock(), 0, time.monotonic()
    with tqdm(desc=stage, unit="img", disable=not sys.stderr.isatty(), leave=False) as bar:

        def progress(images: int) -> None:
            nonlocal total, spoken
            with lock:
                total += images
                bar.update(images)
                if bar.disable and time.monotonic() - spoken >= EVERY_S:
                    spoken = time.monotonic()
                    log.info("%-9s %d images so far", stage, total)

        yield progress
