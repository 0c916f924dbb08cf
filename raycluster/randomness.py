"""Counter-based random numbers: every draw follows from (seed, epoch, row id, stream), so worker counts and resumes change nothing."""

from __future__ import annotations

import heapq

import numpy as np
import torch
from torch import Tensor

SAMPLE_STREAM = 7
"""Stream of the draws behind :func:`sampled`. Training draws from other streams."""
GROUP_STREAM = 9
"""Stream of the draws behind the order of row groups."""
LANES, LANE_GROUPS = 16, 2
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seed: int, epoch: int, row_ids: Tensor, stream: int) -> Tensor:
    """Return one number in [0, 1) for each row id, float64 of the same shape and device.

    It is SplitMix64 (Steele et al. 2014) over the four integers. Different streams keep the draws of one step apart.
    """
    ids = row_ids.cpu().numpy().astype(np.int64).view(np.uint64)
    with np.errstate(over="ignore"):
        state = _mix(np.uint64(seed) + _GOLDEN)
        for part in (epoch, stream):
            state = _mix((state ^ np.uint64(part)) + _GOLDEN)
        mixed = _mix(_mix(ids + _GOLDEN) ^ state)
    return torch.from_numpy((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53).to(row_ids.device)


def integers(seed: int, epoch: int, row_ids: Tensor, stream: int, high: int) -> Tensor:
    """Return one integer in [0, high) for each row id, int64."""
    return (uniform(seed, epoch, row_ids, stream) * high).long().clamp_max_(high - 1)


def sampled(row_ids: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return at most `size` of the ids, ascending: those with the smallest random numbers, so that added rows change few of them."""
    if len(row_ids) <= size:
        return np.sort(row_ids)
    draws = np.asarray(uniform(seed, 0, torch.from_numpy(row_ids.copy()), stream=SAMPLE_STREAM))
    return np.sort(row_ids[np.argpartition(draws, size)[:size]])


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order in which an epoch visits the positions 0 … n−1: a permutation, int64 [n], on the CPU."""
    return torch.argsort(uniform(seed, epoch, torch.arange(n), stream=0), stable=True)


def grouped_order(groups: np.ndarray, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch for rows in row groups of large files: each group is read once, and a few are open at a time.

    The groups are put into an order drawn for the epoch and dealt to up to `LANES` lanes. Within a lane, rows are shuffled over
    `LANE_GROUPS` groups and more. The order takes one row from each lane in turn. So a batch has rows of dozens of groups. With 2, 4, 8 or
    16 workers that take every second, fourth … row, each worker reads its own groups.

    `groups`: int64 [n], the group that each position lies in, as an id that does not change, such as the smallest row id in the group.
    """
    found, of, counts = np.unique(groups, return_inverse=True, return_counts=True)
    lanes = lane_count(len(found))
    visit = torch.argsort(uniform(seed, epoch, torch.from_numpy(found), GROUP_STREAM), stable=True).numpy()
    lane_of, turn_of = np.empty(len(found), np.int64), np.empty(len(found), np.int64)
    # The next group goes to the lane with the fewest rows, so that all lanes end together. With equal groups that is each lane in turn.
    shortest = [(0, lane, 0) for lane in range(lanes)]
    for group in visit:
        rows, lane, turn = shortest[0]
        lane_of[group], turn_of[group] = lane, turn
        heapq.heapreplace(shortest, (rows + int(counts[group]), lane, turn + 1))
    drawn = uniform(seed, epoch, torch.arange(len(groups)), stream=0).numpy()
    # The places are centered and reflected at zero, so that the start of an epoch is as well mixed as the rest.
    when = np.abs(turn_of[of] + LANE_GROUPS * (drawn - 0.5))
    order = np.lexsort((when, lane_of[of]))
    lengths = np.bincount(lane_of[of], minlength=lanes)
    place = np.arange(len(groups)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return torch.from_numpy(order[np.argsort(place * lanes + lane_of[of][order], kind="stable")])


def lane_count(groups: int) -> int:
    """Return the number of lanes of :func:`grouped_order`: a power of two, with about `LANE_GROUPS` groups or more in each lane."""
    return max(1, min(LANES, 2 ** int(np.log2(max(1, groups // LANE_GROUPS)))))


def _mix(z: np.ndarray | np.uint64) -> np.ndarray | np.uint64:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
