"""Test how the progress of a long count is shown: as lines in a log, and as a bar on a terminal."""

from __future__ import annotations

import logging
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from raycluster.images.listing import progress as counting
from raycluster.images.listing.progress import image_progress


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    monkeypatch.setattr(counting.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO), image_progress("manifest") as progress:
        for second in range(21):
            now[0] = float(second)
            progress(1000)
    assert [record.getMessage().split()[1] for record in caplog.records] == ["6000", "11000", "16000", "21000"]


def test_threads_count_together(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "EVERY_S", 0.0)
    with caplog.at_level(logging.INFO), image_progress("manifest") as progress, ThreadPoolExecutor(8) as pool:
        list(pool.map(progress, [1] * 1000))
    assert caplog.records[-1].getMessage() == "manifest  1000 images so far"


def test_a_terminal_gets_a_bar(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(counting, "EVERY_S", 0.0)
    with caplog.at_level(logging.INFO), image_progress("manifest") as progress:
        progress(3)
    assert "manifest" in capsys.readouterr().err
    assert not caplog.records
