"""Exact nearest neighbors by cosine or Euclidean distance, computed in blocks of queries and database rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.errors import ConfigError

BLOCK = 8192
"""Rows and columns of a block of scores. It takes 256 MiB, more than anything else that is held besides input and result."""
GROUP = 16
"""Columns that share one maximum in the search for the best."""
PREPARED_ROWS = 16384
"""Most rows that are turned into float32 at once."""


def nearest_neighbors(
    x: Tensor,
    k: int,
    *,
    metric: Literal["cosine", "euclidean"] = "cosine",
    include_self: bool = False,
    rows: slice | range | None = None,
) -> Tensor:
    """Return the indices [n, k] int32 of the nearest other rows, best first. The search is exact, with scores in float32.

    `x` [N, d] float16 or float32, any scale. `metric`: `cosine` (a row of zeros has cosine 0 to all) or `euclidean`, on raw rows.
    `rows`, a slice or range of step 1, selects the queries, so that a caller can spread them over processes. All rows in one call
    cost half as much each, since a score then serves both of its rows. A row is excluded from its own neighbors by its index, so
    a duplicate of it stays in. With `include_self` the row itself comes first. `k` is cut to the number of other rows.

    Memory besides input and result, in bytes: a block of scores with its maxima and candidates, at most 9·BLOCK² + 64·BLOCK·k; blocks of
    rows while they are prepared, 24·BLOCK·d; and the best scores, 4·n·k. That is 0.95 GB for k = 50 and a million rows × 512.

    Raises :class:`ConfigError` for rows with NaN or infinity, and ValueError for other values of `rows` or `metric` than these.
    """
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric must be cosine or euclidean, not {metric!r}")
    queries = range(len(x))[rows] if isinstance(rows, slice) else range(len(x)) if rows is None else rows
    if queries.step != 1 or not 0 <= queries.start <= queries.stop <= len(x):
        raise ValueError(f"rows must be a slice or range of step 1 within 0 to {len(x)}, not {rows}")
    found = _best(x, queries, max(0, min(k - include_self, len(x) - 1)), row_scale(x, spherical=metric == "cosine"))
    if not include_self:
        return found
    own = torch.arange(queries.start, queries.stop, dtype=torch.int32, device=x.device)
    return torch.cat([own.unsqueeze(1), found], dim=1)


def _best(x: Tensor, queries: range, k: int, prepare: RowScale) -> Tensor:
    """Return the indices of the `k` best. Each block of scores is merged into the best so far."""
    best = torch.full((len(queries), k), -torch.inf, device=x.device)
    index = torch.zeros(len(queries), k, dtype=torch.int32, device=x.device)
    symmetric = len(queries) == len(x)
    buffer = torch.empty(min(BLOCK, len(queries)) * min(BLOCK, len(x)) if k else 0, device=x.device)
    for start in range(queries.start, queries.stop if k else queries.start, BLOCK):
        block = prepare(x[start : min(start + BLOCK, queries.stop)])
        mine = slice(start - queries.start, start - queries.start + len(block))
        # If all rows are queries, the blocks below the diagonal are transposes of those above it.
        for other in range(start if symmetric else 0, len(x), BLOCK):
            database = prepare(x[other : other + BLOCK])
            scores = _scores(block, database, buffer, prepare)
            if -len(database) < other - start < len(block):
                scores.diagonal(start - other).fill_(-torch.inf)
            merge_best(best[mine], index[mine], scores, other)
            if symmetric and other > start:
                theirs = slice(other, other + len(database))
                merge_best(best[theirs], index[theirs], scores.T, start)
    return index


def _scores(a: Tensor, b: Tensor, buffer: Tensor, prepare: RowScale) -> Tensor:
    """Return the cosines [len(a), len(b)], or half the negative squared distances. Both are symmetric in `a` and `b`."""
    scores = buffer[: len(a) * len(b)].view(len(a), len(b))
    if prepare.spherical:
        return torch.mm(a, b.T, out=scores)
    torch.add(a.square().sum(1).unsqueeze(1), b.square().sum(1), out=scores)
    return scores.addmm_(a, b.T, beta=-0.5)


def merge_best(best: Tensor, index: Tensor, scores: Tensor, first: int) -> None:
    """Update the k best scores so far, `best` and `index` [n, k], in place with `scores` [n, m] of the rows from `first` on.

    The k best lie in the at most k groups with the largest maxima, and only in groups with a maximum above the worst score kept so far.
    Maxima are cheap to find, and all other work is done on few columns.
    """
    k, groups = best.shape[1], scores.shape[1] // GROUP
    if groups <= 2 * k:
        found = scores.topk(min(k, scores.shape[1]))
        _keep(best, index, found.values, found.indices + first)
        return
    maxima = _group_maxima(scores, groups)
    wanted = min(k, int((maxima > best[:, -1:]).sum(dim=1, dtype=torch.int32).max()))
    if wanted:
        near = maxima.topk(wanted, sorted=False).indices
        grouped = scores[:, : groups * GROUP].unflatten(1, (GROUP, groups))
        members = grouped.gather(2, near.unsqueeze(1).expand(-1, GROUP, -1)).flatten(1)
        found = members.topk(min(k, members.shape[1]))
        with one_thread():
            columns = found.indices // wanted * groups + near.gather(1, found.indices % wanted)
        _keep(best, index, found.values, columns + first)
    if groups * GROUP < scores.shape[1]:
        merge_best(best, index, scores[:, groups * GROUP :], first + groups * GROUP)


def _keep(best: Tensor, index: Tensor, values: Tensor, rows: Tensor) -> None:
    """Merge `values` and their `rows`, each [n, m] with any m, into the best so far, in place."""
    with one_thread():
        both, both_index = torch.cat([best, values], dim=1), torch.cat([index, rows.int()], dim=1)
    kept = both.topk(best.shape[1])
    with one_thread():
        best.copy_(kept.values)
        index.copy_(both_index.gather(1, kept.indices))


def _group_maxima(scores: Tensor, groups: int) -> Tensor:
    """Return the maxima [n, groups] over columns with the same remainder modulo `groups`; the last few columns are in no group."""
    if scores.stride(1) == 1:
        return scores[:, : groups * GROUP].unflatten(1, (GROUP, groups)).amax(1)
    # In a transposed block, taking the maxima along memory is ten times faster than across it.
    return scores.T[: groups * GROUP].unflatten(0, (GROUP, groups)).amax(0).T.contiguous()


@dataclass(frozen=True)
class RowScale:
    """A function that turns a chunk of raw rows into float32 rows that neither overflow nor lose digits by cancellation."""

    spherical: bool
    scale: float
    """A power of two, so that dividing by it is exact."""
    shift: Tensor
    """[d] float32. It is subtracted from scaled rows where only distances matter."""

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the rows [n, d] of any float dtype as float32: unit (or zero) rows if spherical, else scaled and shifted rows."""
        rows = rows.float()
        if not self.spherical:
            return rows / self.scale - self.shift
        # After division by its largest value, no row is so large or small that its norm overflows or underflows.
        return normalize(rows / _largest(rows).clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1), dim=1)


def row_scale(x: Tensor, *, spherical: bool) -> RowScale:
    """Return how to prepare the rows [N, d]; raise :class:`ConfigError` for rows with NaN or infinity."""
    largest = torch.cat([_largest(chunk.float()) for chunk in x.split(PREPARED_ROWS)])
    broken = int(largest.isfinite().logical_not_().sum())
    if broken:
        raise ConfigError(
            f"embeddings: {broken} of {len(x)} rows contain NaN or infinity; leave these images out, or embed them again"
        )
    # The exponent is bounded so that float32 can hold the scale and divide by it.
    scale = 2.0 ** max(-126, math.frexp(float(largest.max()))[1] - 1) if len(x) else 1.0
    if spherical or not len(x):
        return RowScale(spherical, scale, torch.zeros(x.shape[1], device=x.device))
    # A shift does not change distances. With the mean as the shift they lose least by rounding.
    return RowScale(spherical, scale, (x[:: max(1, len(x) // PREPARED_ROWS)].float() / scale).mean(dim=0))


def _largest(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, math.inf, dim=1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute small steps on one thread: on busy cores, a step of many threads waits 8 ms for a time slice, a sort 200 ms."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
