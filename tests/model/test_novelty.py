"""Test which rows are flagged as outliers and how often, and what is stored for this."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.model import novelty
from raycluster.model.novelty import FALSE_RATE, Novelty, fit_novelty, spread


def blobs(n: int, seed: int, centers: int = 8, dim: int = 32) -> Tensor:
    """Rows around `centers` directions. The directions are the same for every seed."""
    means = torch.randn(centers, dim, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return means[torch.arange(n) % centers] + 0.3 * noise


def share(found: Novelty, rows: Tensor) -> float:
    return found.flags(rows).float().mean().item()


@pytest.mark.parametrize("n", [2000, 20_000])
def test_known_rows_are_flagged_at_the_promised_rate_and_noise_always(n: int) -> None:
    found = fit_novelty(blobs(n, 1))
    assert found.expected == pytest.approx(FALSE_RATE, rel=0.06)
    assert share(found, blobs(20_000, 2)) == pytest.approx(FALSE_RATE, abs=0.006)
    assert share(found, torch.randn(500, 32)) > 0.98


def test_of_few_rows_one_row_sets_the_limit() -> None:
    # Over many training sets of 40 rows, a new row is the strangest of the 41 as often as any other row.
    rates = [(found.expected, share(found, blobs(400, 10_000 + seed))) for seed in range(60) for found in [fit_novelty(blobs(40, seed))]]  # fmt: skip
    expected, measured = np.mean(rates, axis=0)
    assert expected == pytest.approx(1 / 41)
    assert measured == pytest.approx(1 / 41, abs=0.012)


def test_the_limit_is_that_of_a_plain_computation() -> None:
    rows = blobs(150, 3).half()
    unit = normalize(rows.double(), dim=1)
    second = [sorted((float(unit[i] @ unit[j]) for j in range(150) if j != i), reverse=True)[1] for i in range(150)]
    found = fit_novelty(rows)
    assert found.expected == 1 / 151
    assert found.limit == pytest.approx(min(second) - novelty.ROUNDING, abs=1e-4)


def test_copies_of_every_row_make_no_difference() -> None:
    once, new = fit_novelty(blobs(800, 4)), blobs(4000, 5)
    twice = fit_novelty(blobs(800, 4).repeat_interleave(2, dim=0))
    assert share(twice, new) == pytest.approx(share(once, new), abs=0.01)


def test_identical_rows_and_their_like_are_no_outliers() -> None:
    row = torch.randn(1, 48)
    found = fit_novelty(row.expand(30, -1))
    assert share(found, 3 * row) == 0
    assert share(found, row + 1e-3 * torch.randn(20, 48)) == 0
    assert share(found, torch.randn(20, 48)) == 1


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_handful_of_rows_is_enough(n: int) -> None:
    found = fit_novelty(blobs(n, 6, centers=1))
    assert found.expected == 1 / (n + 1)
    assert share(found, -blobs(50, 7, centers=1)) == 1


def test_scale_and_zero_rows() -> None:
    found, new = fit_novelty(blobs(500, 8)), blobs(100, 9)
    assert torch.equal(found.flags(new), found.flags(1000 * new))
    assert found.flags(torch.zeros(1, 32)).all()
    assert found.flags(torch.empty(0, 32)).shape == (0,)


def test_what_is_stored_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(novelty, "STORED", 100)
    found = fit_novelty(blobs(1000, 10))
    assert found.rows.shape == (100, 32)
    assert torch.equal(found.rows, found.rows.half().float())
    assert found.expected == pytest.approx(0.01, rel=0.01)


def test_positions_are_spread_evenly() -> None:
    assert spread(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert spread(1001, 11).tolist() == list(range(0, 1001, 100))
    assert len(spread(3_000_001, 4096).unique()) == 4096
