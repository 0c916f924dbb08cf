from __future__ import annotations

import torch

from raycluster.training.counted import epoch_order, integers, uniform


def test_a_row_draws_the_same_whoever_asks() -> None:
    ids = torch.arange(1000) * 13 + 5
    whole = uniform(7, 3, ids, stream=1)
    for rank in range(4):
        assert torch.equal(whole[rank::4], uniform(7, 3, ids[rank::4], stream=1))


def test_seed_epoch_and_stream_draw_apart() -> None:
    ids = torch.arange(200)
    draws = [uniform(s, e, ids, st) for s, e, st in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    for i, one in enumerate(draws):
        for other in draws[i + 1 :]:
            assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.25


def test_draws_are_uniform() -> None:
    counts = torch.bincount(integers(0, 0, torch.arange(100_000), 2, 20), minlength=20).double()
    chi_square = float(((counts - 5000) ** 2 / 5000).sum())
    assert chi_square < 45  # 19 degrees of freedom: above 43.8 once in a thousand
    assert len(counts) == 20


def test_an_epoch_visits_every_row_once_in_its_own_order() -> None:
    one, two = epoch_order(500, 0, 0), epoch_order(500, 0, 1)
    assert torch.equal(one.sort().values, torch.arange(500))
    assert not torch.equal(one, two)
    assert torch.equal(one, epoch_order(500, 0, 0))
