"""Test the counter-based random numbers: what they depend on, and the orders that an epoch makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raycluster.randomness import LANE_GROUPS, LANES, epoch_order, grouped_order, integers, uniform


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


def test_draws_of_neighboring_ids_epochs_and_streams_are_independent() -> None:
    ids = torch.arange(40_000)
    pairs = [
        (integers(0, 0, ids, 1, 8), integers(0, 0, ids, 2, 8)),
        (integers(0, 0, ids, 1, 8), integers(0, 1, ids, 1, 8)),
        (integers(0, 0, ids, 1, 8), integers(1, 0, ids, 1, 8)),
        (integers(0, 0, ids, 1, 8), integers(0, 0, ids + 1, 1, 8)),
        # The order of the numbers matters: epoch 1 with stream 2 is not epoch 2 with stream 1.
        (integers(0, 1, ids, 2, 8), integers(0, 2, ids, 1, 8)),
    ]
    for one, other in pairs:
        counts = torch.bincount(one * 8 + other, minlength=64).double()
        expected = len(ids) / 64
        # 63 degrees of freedom: above 103.4 once in a thousand.
        assert float(((counts - expected) ** 2 / expected).sum()) < 103.4


def test_draws_lie_in_their_range_for_any_row_id() -> None:
    ids = torch.tensor([0, 1, 2**31, 2**40 + 7, 2**63 - 1])
    draws = uniform(2**31 - 1, 10**6, ids, stream=2)
    assert draws.dtype == torch.float64
    assert ((draws >= 0) & (draws < 1)).all()
    assert len(draws.unique()) == 5
    assert integers(0, 0, ids, 1, 1).tolist() == [0] * 5
    few = integers(0, 0, torch.arange(1000), 1, 3)
    assert few.dtype == torch.int64
    assert sorted(few.unique().tolist()) == [0, 1, 2]


def test_an_order_depends_on_the_seed_and_puts_a_row_anywhere() -> None:
    assert not torch.equal(epoch_order(500, 0, 0), epoch_order(500, 1, 0))
    places = torch.stack([epoch_order(10, 0, epoch).argsort()[0] for epoch in range(4000)])
    counts = torch.bincount(places, minlength=10).double()
    # 9 degrees of freedom: above 27.9 once in a thousand.
    assert float(((counts - 400) ** 2 / 400).sum()) < 27.9


def grouped(sizes: list[int]) -> np.ndarray:
    """The id of the group of each position. The ids have gaps."""
    return np.repeat(1000 + 64 * np.arange(len(sizes)), sizes)


@pytest.mark.parametrize("sizes", [[64] * 200, [5], [1] * 7, [64] * 33 + [17], [60 + i % 5 for i in range(500)]])
def test_an_order_over_row_groups_is_a_permutation_of_its_own(sizes: list[int]) -> None:
    groups = grouped(sizes)
    orders = [grouped_order(groups, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(len(groups)))
    if len(groups) > 10:
        assert not torch.equal(orders[0], orders[1])
        assert not torch.equal(orders[0], orders[2])
    assert torch.equal(orders[0], orders[3])


def open_groups(visited: np.ndarray) -> int:
    """The largest number of groups that are begun and not finished at the same time."""
    _, first = np.unique(visited, return_index=True)
    _, last = np.unique(visited[::-1], return_index=True)
    begun, ended = np.zeros(len(visited) + 1, int), np.zeros(len(visited) + 1, int)
    np.add.at(begun, first, 1)
    np.add.at(ended, len(visited) - last, 1)
    return int((begun.cumsum() - ended.cumsum()).max())


@pytest.mark.parametrize("sizes", [[64] * 1000, [56 + i % 9 for i in range(1000)]], ids=["equal", "unequal"])
@pytest.mark.parametrize("workers", [1, 2, 4, 8, 16])
def test_a_worker_reads_groups_of_its_own_one_after_the_other(sizes: list[int], workers: int) -> None:
    groups = grouped(sizes)
    visited = groups[grouped_order(groups, 3, 1).numpy()]
    shares = [visited[rank::workers] for rank in range(workers)]
    limit = LANES // workers * (LANE_GROUPS + 1) + LANES
    assert max(open_groups(share) for share in shares) <= limit
    # At the end of the epoch the longest lanes are shared.
    reads = sum(len(np.unique(share)) for share in shares)
    assert reads <= len(sizes) + 2 * workers * LANES


def test_a_batch_has_rows_of_many_groups() -> None:
    groups = grouped([64] * 1000)
    visited = groups[grouped_order(groups, 0, 0).numpy()]
    of_a_batch = [len(np.unique(visited[start : start + 128])) for start in range(0, 63_000, 128)]
    assert min(of_a_batch) >= 24
    # The groups do not come in the order of their ids.
    first = groups[0] + 64 * np.arange(1000)
    when = np.array([np.flatnonzero(visited == group).mean() for group in first])
    assert abs(np.corrcoef(np.arange(1000), when)[0, 1]) < 0.1


def test_groups_that_are_added_leave_the_others_in_their_order() -> None:
    """The order of groups depends on their ids, not on how many there are."""

    def visit(groups: np.ndarray) -> list[int]:
        return list(dict.fromkeys(groups[grouped_order(groups, 0, 0).numpy()].tolist()))

    few, more = visit(grouped([1] * 30)), visit(grouped([1] * 31))
    place = {group: i for i, group in enumerate(more)}
    moved = np.corrcoef(np.arange(30), [place[group] for group in few])[0, 1]
    assert moved > 0.7
