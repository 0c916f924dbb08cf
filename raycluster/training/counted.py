"""Counted randomness: every draw follows from (seed, epoch, row id, stream), so that worker counts and resumes change nothing."""

from __future__ import annotations

import heapq

import numpy as np
import torch
from torch import Tensor

SAMPLE_STREAM = 7
"""Stream of the draws behind :func:`sampled`; training uses the smaller ones."""
GROUP_STREAM = 9
"""Stream of the draws behind the order of row groups."""
LANES, LANE_GROUPS = 16, 2
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seed: int, epoch: int, row_ids: Tensor, stream: int) -> Tensor:
    """One number in [0, 1) for each row id, float64 of the same shape and device.

    SplitMix64 (Steele et al. 2014) over the four integers; streams keep the draws of one step apart.
    """
    ids = row_ids.cpu().numpy().astype(np.int64).view(np.uint64)
    with np.errstate(over="ignore"):
        state = _mix(np.uint64(seed) + _GOLDEN)
        for part in (epoch, stream):
            state = _mix((state ^ np.uint64(part)) + _GOLDEN)
        mixed = _mix(_mix(ids + _GOLDEN) ^ state)
    return torch.from_numpy((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53).to(row_ids.device)


def integers(seed: int, epoch: int, row_ids: Tensor, stream: int, high: int) -> Tensor:
    """One integer in [0, high) for each row id, int64."""
    return (uniform(seed, epoch, row_ids, stream) * high).long().clamp_max_(high - 1)


def sampled(row_ids: np.ndarray, size: int, seed: int) -> np.ndarray:
    """At most `size` of the ids, ascending: those whose number is smallest, so that growth changes few."""
    if len(row_ids) <= size:
        return np.sort(row_ids)
    draws = np.asarray(uniform(seed, 0, torch.from_numpy(row_ids.copy()), stream=SAMPLE_STREAM))
    return np.sort(row_ids[np.argpartition(draws, size)[:size]])


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits the positions 0 … n−1: a permutation, int64 [n], on the CPU."""
    return torch.argsort(uniform(seed, epoch, torch.arange(n), stream=0), stable=True)


def grouped_order(groups: np.ndarray, seed: int, epoch: int) -> Tensor:
    """The same for rows that lie in row groups of large files: each group is read once, a few are open at a time.

    Groups come in an order drawn for the epoch and are dealt to up to `LANES` lanes; in a lane rows are shuffled over `LANE_GROUPS` groups
    and more; a row of every lane in turn makes the order. So a batch has rows of dozens of groups, and of 2, 4, 8 or 16 workers that take
    every second, fourth … row each reads groups of its own.

    `groups`: int64 [n], which group each position lies in, by an id that stays, such as the smallest row id in it.
    """
    found, of, counts = np.unique(groups, return_inverse=True, return_counts=True)
    lanes = lane_count(len(found))
    visit = torch.argsort(uniform(seed, epoch, torch.from_numpy(found), GROUP_STREAM), stable=True).numpy()
    lane_of, turn_of = np.empty(len(found), np.int64), np.empty(len(found), np.int64)
    # The next group goes to the lane with fewest rows, so that all end together; with equal groups that is each in turn.
    shortest = [(0, lane, 0) for lane in range(lanes)]
    for group in visit:
        rows, lane, turn = shortest[0]
        lane_of[group], turn_of[group] = lane, turn
        heapq.heapreplace(shortest, (rows + int(counts[group]), lane, turn + 1))
    drawn = uniform(seed, epoch, torch.arange(len(groups)), stream=0).numpy()
    # Centered and reflected, so that an epoch begins as mixed as it goes on.
    when = np.abs(turn_of[of] + LANE_GROUPS * (drawn - 0.5))
    order = np.lexsort((when, lane_of[of]))
    lengths = np.bincount(lane_of[of], minlength=lanes)
    place = np.arange(len(groups)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return torch.from_numpy(order[np.argsort(place * lanes + lane_of[of][order], kind="stable")])


def lane_count(groups: int) -> int:
    """Lanes of :func:`grouped_order`: a power of two; few groups are not spread thin."""
    return max(1, min(LANES, 2 ** int(np.log2(max(1, groups // LANE_GROUPS)))))


def _mix(z: np.ndarray | np.uint64) -> np.ndarray | np.uint64:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
