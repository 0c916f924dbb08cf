"""Counted randomness: every draw follows from (seed, epoch, row id, stream), so that worker counts and resumes change nothing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SAMPLE_STREAM = 7
"""Stream of the draws behind :func:`sampled`; training uses the smaller ones."""
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


def _mix(z: np.ndarray | np.uint64) -> np.ndarray | np.uint64:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
