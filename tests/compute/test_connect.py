"""Test what a user reads if Ray does not start on this machine, and that a slow start is tried again."""

from __future__ import annotations

from typing import Any

import pytest

from raycluster.compute import connect
from raycluster.errors import RayclusterError


class SlowRay:
    """In place of the module `ray`: a Ray whose first starts take too long."""

    def __init__(self, failures: int) -> None:
        self.failures, self.starts = failures, 0

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: Any) -> None:
        self.starts += 1
        if self.starts <= self.failures:
            raise Exception("The current node timed out during startup.")


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def join(failures: int) -> SlowRay:
        slow = SlowRay(failures)
        monkeypatch.setattr(connect, "ray", slow)
        assert connect.join() is False
        return slow

    return join


def test_a_start_that_takes_too_long_is_tried_again(start: Any) -> None:
    assert start(0).starts == 1
    assert start(1).starts == 2


def test_a_ray_that_does_not_start_is_one_error_in_words(start: Any) -> None:
    with pytest.raises(RayclusterError, match=r"ray: it did not start on this machine \(The current node") as caught:
        start(2)
    assert caught.value.reason_and_remedy[1].startswith("end other programs")
