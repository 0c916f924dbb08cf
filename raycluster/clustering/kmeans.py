"""k-means on tensors, spherical or Euclidean, on CPU or GPU. It works in chunks, so a million rows and thousands of centers fit memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from raycluster.clustering.neighbors import PREPARED_ROWS, RowScale, one_thread, row_scale
from raycluster.clustering.seeding import ROUNDING, plus_plus
from raycluster.errors import ConfigError

log = logging.getLogger(__name__)

CHUNK_BYTES = 2**27
"""Bytes of the largest matrix of scores that is held at once."""
SAMPLE_ROWS_A_CENTER = 256
"""With more rows a center than this, iterations run on a sample of so many a center; all rows are assigned at the end."""
FIRST_ROWS_A_CENTER = 16
"""Rows a center in the first iterations. The sample then grows fourfold at a time until it holds all rows."""
FIRST_ITERATIONS = 10
"""Most iterations before the sample grows again."""
FIRST_TOLERANCE = 1e-3
"""Relative improvement below which the sample grows."""
MANY_CHANGED = 0.35
"""If a larger share of centers has changed, all rows are compared with all centers, since the bookkeeping would cost more than it saves."""
SEEDING_ROWS_A_CENTER = 8
"""Rows a center that k-means++ draws from."""


@dataclass(frozen=True)
class KMeans:
    """The result of :func:`kmeans`."""

    centers: Tensor
    """[k, d] float32. Spherical: unit rows, but a center that has only zero rows is zero."""
    labels: Tensor
    """[N] int64: the index of each row's center."""
    objective: float
    """Mean cosine of a row to its center if spherical, else minus the mean squared distance."""
    iterations: int
    """Iterations of the best run on the whole sample."""
    converged: bool


def kmeans(
    x: Tensor,
    k: int,
    *,
    seed: int,
    spherical: bool = True,
    restarts: int = 1,
    max_iterations: int = 100,
    tolerance: float = 1e-5,
    start: Tensor | None = None,
    rows_a_center: int | None = None,
    warn: bool = True,
) -> KMeans:
    """Cluster rows by cosine (Dhillon & Modha 2001) or by Euclidean distance, seeded by greedy k-means++ (Arthur & Vassilvitskii 2007).

    `x` [N, d] float16 or float32, any scale. The result is the best of `restarts` runs by objective. A run ends when the objective grows
    by less than `tolerance` of itself, or after `max_iterations`; `warn`: log a warning then. With more than `rows_a_center`·k rows
    (default: SAMPLE_ROWS_A_CENTER), it runs on a drawn sample of that many, which is held in float32, and then assigns all rows to the
    centers found. `start` [k, d], unit rows if spherical, replaces the seeding; there is one run then. A center that loses all its rows is
    moved to the row that fits its own center worst. With fewer distinct rows than `k`, some centers coincide and stay empty. The result is
    deterministic in `seed` on one device.
    Raises :class:`ConfigError` for k > N and for rows with NaN or infinity.
    """
    if k > len(x):
        raise ConfigError(
            f"clusters: k-means into {k} clusters needs at least {k} images, but there are {len(x)}; lower `clusters`"
        )
    prepare = row_scale(x, spherical=spherical)
    drawn_rows = k * (rows_a_center or SAMPLE_ROWS_A_CENTER)
    order = torch.randperm(len(x), generator=_generator(seed, 0))[:drawn_rows].to(x.device)
    sample = torch.empty(len(order), x.shape[1], device=x.device)
    for rows, drawn in zip(sample.split(PREPARED_ROWS), order.split(PREPARED_ROWS), strict=True):
        rows.copy_(prepare(x[drawn]))
    data = _Rows(sample, spherical)
    if start is not None:
        centers = start if spherical else start / prepare.scale - prepare.shift
        runs = [_lloyd(data, centers.float(), max_iterations, tolerance)]
    else:
        runs = [_run(data, k, _generator(seed, 1 + run), max_iterations, tolerance) for run in range(restarts)]
    best = max(runs, key=lambda run: run.objective)
    if warn and not best.converged:
        log.warning(
            "k-means: it has not converged after %d iterations (objective %.4f); its centers are used all the same",
            best.iterations,
            best.objective,
        )
    return _assigned(x, order, best, prepare)


def nearest_center(x: Tensor, centers: Tensor, *, spherical: bool = True) -> tuple[Tensor, Tensor]:
    """Return for each row its nearest center: the cosine (or minus the squared distance) and the center's index, each [N].

    `x` [N, d] float16 or float32, any scale; `centers` [k, d] float32, unit rows if spherical. Rows are prepared and compared in chunks.
    """
    prepare = row_scale(x, spherical=spherical)
    if spherical:
        return _nearest(x, centers, prepare)
    distance, labels = _nearest(x, centers / prepare.scale - prepare.shift, prepare)
    return distance * prepare.scale**2, labels


class _Rows:
    """Prepared rows [n, d] with their squared norms, which every iteration needs."""

    def __init__(self, rows: Tensor, spherical: bool, squares: Tensor | None = None) -> None:
        self.rows, self.spherical = rows, spherical
        self.squares = rows.square().sum(dim=1) if squares is None else squares

    def head(self, n: int) -> _Rows:
        return _Rows(self.rows[:n], self.spherical, self.squares[:n])

    def misfit(self, score: Tensor) -> Tensor:
        """Return 1 − cosine, or the squared distance to the own center; 0 for rows of zeros among unit rows, which no center fits."""
        return self.squares - (1 if self.spherical else 2) * score

    def objective(self, score: Tensor) -> float:
        with one_thread():
            values = score if self.spherical else -self.misfit(score).clamp_min_(0)
            return float(values.double().mean())


def _run(data: _Rows, k: int, generator: torch.Generator, max_iterations: int, tolerance: float) -> KMeans:
    """Seed and run once. Centers move most in the first iterations, and few rows are enough for these."""
    first = data.head(SEEDING_ROWS_A_CENTER * k)
    centers = plus_plus(first.rows, first.squares, k, generator)
    n = FIRST_ROWS_A_CENTER * k
    while 2 * n < len(data.rows):
        centers = _lloyd(data.head(n), centers, FIRST_ITERATIONS, FIRST_TOLERANCE).centers
        n *= 4
    return _lloyd(data, centers, max_iterations, tolerance)


def _lloyd(data: _Rows, centers: Tensor, max_iterations: int, tolerance: float) -> KMeans:
    score, labels = _compare(data.rows, centers, data.spherical)
    objective, converged, iterations = data.objective(score), False, 0
    while not converged and iterations < max_iterations:
        updated, repaired = _update(data, labels, score, centers)
        with one_thread():
            changed = (updated != centers).any(dim=1)
        centers = updated
        score, labels = _compare_again(data, centers, changed, score, labels)
        before, objective = objective, data.objective(score)
        # A center that was moved to a far row may lower the objective at first, so such an iteration never ends the run.
        converged = objective - before <= tolerance * abs(objective) and not repaired
        iterations += 1
    return KMeans(centers, labels, objective, iterations, converged)


def _compare_again(
    data: _Rows, centers: Tensor, changed: Tensor, score: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what :func:`_compare` would, from its last result and the mask `changed` [k] of the centers that have changed since.

    In late iterations few centers change, and most rows need to be compared only with these (Kaukoranta et al. 1999). If a changed
    center suits a row better than its own center did before, it is the row's best, since all unchanged centers suit the row no better
    than its own did. Otherwise the row keeps its center if that did not change. The remaining rows are compared with all centers.
    """
    columns = changed.nonzero().squeeze(1)
    if len(columns) > MANY_CHANGED * len(centers):
        return _compare(data.rows, centers, data.spherical)
    if not len(columns):
        return score, labels
    near, nearest = _compare(data.rows, centers[columns], data.spherical)
    with one_thread():
        better = near > score
        lost = (changed[labels] & ~better).nonzero().squeeze(1)
        score, labels = torch.where(better, near, score), torch.where(better, columns[nearest], labels)
    again, again_labels = _compare(data.rows[lost], centers, data.spherical)
    with one_thread():
        return score.index_copy_(0, lost, again), labels.index_copy_(0, lost, again_labels)


def _compare(rows: Tensor, centers: Tensor, spherical: bool) -> tuple[Tensor, Tensor]:
    """Return the best score of each prepared row [n, d], x·c or x·c − |c|²/2, and the index of its center, each [n]."""
    score, labels = rows.new_empty(len(rows)), torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    size = max(1, min(len(rows), CHUNK_BYTES // (4 * len(centers))))
    # All chunks share one matrix: allocating memory for each would cost a tenth of the time of the products.
    buffer, offset = rows.new_empty(size, len(centers)), centers.square().sum(dim=1) / -2
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        scores = buffer[: len(part)]
        if spherical:
            torch.mm(part, centers.T, out=scores)
        else:
            torch.addmm(offset, part, centers.T, out=scores)
        torch.max(scores, dim=1, out=(score[start : start + size], labels[start : start + size]))
    return score, labels


def _update(data: _Rows, labels: Tensor, score: Tensor, centers: Tensor) -> tuple[Tensor, bool]:
    """Return the means of the rows of each label, [k, d], and whether a center without rows was moved to a row that fits badly."""
    with one_thread():
        order = labels.argsort(stable=True)
        counts = torch.bincount(labels, minlength=len(centers))
    # Summing sorted rows is an order of magnitude faster than index_add_ on CPU, and deterministic on GPU.
    sums = embedding_bag(order, data.rows, counts.cumsum(0) - counts, mode="sum")
    with one_thread():
        size = sums.norm(dim=1) if data.spherical else counts
        # A sum of opposite rows is only a rounding error without a direction. The center then stays where it is.
        known = size > 1e-6 * counts if data.spherical else counts > 0
        moved = torch.where(known.unsqueeze(1), sums / size.clamp_min(1e-12).unsqueeze(1), centers)
    empty = (counts == 0).nonzero().squeeze(1)
    if not len(empty):
        return moved, False
    far = _far_rows(data, data.misfit(score), len(empty))
    moved[empty[: len(far)]] = data.rows[far]
    return moved, len(far) > 0


def _far_rows(data: _Rows, misfit: Tensor, wanted: int) -> Tensor:
    """Return up to `wanted` distinct rows that fit worst, worst first, without rows that differ from their center only by rounding."""
    worst = misfit.topk(min(len(misfit), 4 * wanted + 32)).indices
    worst = worst[misfit[worst] > ROUNDING * data.squares[worst]]
    values, group = data.rows[worst].unique(dim=0, return_inverse=True)
    first = torch.full((len(values),), len(worst), device=worst.device)
    first = first.scatter_reduce(0, group, torch.arange(len(worst), device=worst.device), "amin")
    return worst[first.sort().values[:wanted]]


def _assigned(x: Tensor, order: Tensor, run: KMeans, prepare: RowScale) -> KMeans:
    """Return the run's result for all rows, with centers in the scale of `x`; `order`: the rows of `x` that it ran on."""
    centers = run.centers if prepare.spherical else (run.centers + prepare.shift) * prepare.scale
    unit = 1.0 if prepare.spherical else prepare.scale**2
    if len(order) == len(x):
        labels = torch.empty_like(run.labels).index_copy_(0, order, run.labels)
        return replace(run, centers=centers, labels=labels, objective=run.objective * unit)
    best, labels = _nearest(x, run.centers, prepare)
    return replace(run, centers=centers, labels=labels, objective=float(best.double().mean()) * unit)


def _nearest(x: Tensor, centers: Tensor, prepare: RowScale) -> tuple[Tensor, Tensor]:
    """Return raw rows' cosine or minus squared distance to the nearest prepared center, and its index. Rows are prepared in chunks."""
    found: list[tuple[Tensor, Tensor]] = []
    for chunk in x.split(PREPARED_ROWS):
        data = _Rows(prepare(chunk), prepare.spherical)
        score, labels = _compare(data.rows, centers, prepare.spherical)
        found.append((score if prepare.spherical else -data.misfit(score).clamp_min_(0), labels))
    return torch.cat([best for best, _ in found]), torch.cat([labels for _, labels in found])


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + stream) % 2**63)
