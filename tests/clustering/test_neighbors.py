"""Test that nearest neighbors are exact, whatever the metric, the size of the blocks and the scale of the rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from raycluster.clustering import neighbors
from raycluster.clustering.neighbors import nearest_neighbors
from raycluster.errors import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden" / "neighbors_N60.npz"


def test_neighbors_are_the_authors() -> None:
    with np.load(GOLDEN, allow_pickle=False) as g:
        found = nearest_neighbors(torch.from_numpy(g["features_unit"]), int(g["topk"]))
        assert found.tolist() == g["tac_indices"].tolist()


def test_neighbors_of_raw_rows_are_the_authors() -> None:
    with np.load(GOLDEN, allow_pickle=False) as g:
        raw, expected = torch.from_numpy(g["features"]), g["sic_indices"]
        found = nearest_neighbors(raw, expected.shape[1], metric="euclidean", include_self=True)
        assert found.tolist() == expected.tolist()


def rows(n: int = 300, d: int = 6, offset: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1)) + offset


def plain(x: Tensor, metric: str) -> Tensor:
    """For each row all other rows, nearest first, computed in float64."""
    x = x.double()
    if metric == "cosine":
        x = x / x.norm(dim=1, keepdim=True)
    distance = (x.unsqueeze(1) - x).square().sum(dim=2)
    return distance.fill_diagonal_(torch.inf).argsort(dim=1)[:, :-1]


def shrink(monkeypatch: pytest.MonkeyPatch, block: int, group: int = 2) -> None:
    monkeypatch.setattr(neighbors, "BLOCK", block)
    monkeypatch.setattr(neighbors, "GROUP", group)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("block", "group", "k"), [(8192, 16, 7), (64, 4, 3), (61, 3, 9), (50, 2, 7), (11, 2, 2)])
def test_neighbors_are_those_of_a_plain_sort(
    metric: str, dtype: torch.dtype, block: int, group: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch, block, group)
    x = rows().to(dtype)
    found = nearest_neighbors(x, k, metric=metric)
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), plain(x, metric)[:, :k])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize(
    "part", [slice(0, 40), slice(90, 205), range(299, 300), slice(-7, None), range(0, 300), slice(5, 5)]
)
def test_some_rows_have_the_neighbors_they_have_among_all(
    metric: str, include_self: bool, part: slice | range, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch, 64, 4)
    x = rows()
    every = nearest_neighbors(x, 5, metric=metric, include_self=include_self)
    some = nearest_neighbors(x, 5, metric=metric, include_self=include_self, rows=part)
    assert torch.equal(some, every[part.start : part.stop])


@pytest.mark.parametrize("part", [slice(0, 9, 2), range(0, 301), range(-3, 5), range(9, 0, -1)])
def test_rows_must_lie_within_the_rows_without_gaps(part: slice | range) -> None:
    with pytest.raises(ValueError, match="slice or range of step 1 within 0 to 300"):
        nearest_neighbors(rows(), 3, rows=part)


def test_an_unknown_metric_is_an_error() -> None:
    with pytest.raises(ValueError, match="cosine or euclidean, not 'dot'"):
        nearest_neighbors(rows(), 3, metric="dot")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_neighbors_do_not_depend_on_the_scale(metric: str, scale: float) -> None:
    x = rows()
    assert torch.equal(nearest_neighbors(x * scale, 6, metric=metric), nearest_neighbors(x, 6, metric=metric))


def test_distances_far_from_the_origin_are_not_lost_by_rounding() -> None:
    x = rows(offset=1000.0)
    assert torch.equal(nearest_neighbors(x, 6, metric="euclidean").long(), plain(x, "euclidean")[:, :6])


def test_cosine_ignores_lengths_and_distance_does_not() -> None:
    x = torch.tensor([[1.0, 0.0], [9.0, 1.0], [1.0, 0.5]])
    assert nearest_neighbors(x, 1)[0].tolist() == [1]
    assert nearest_neighbors(x, 1, metric="euclidean")[0].tolist() == [2]


def test_a_duplicate_stays_a_neighbor_and_the_row_itself_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, 5)
    x = rows(12, 4)
    x[7] = x[2]
    found = nearest_neighbors(x, 3)
    assert found[2, 0] == 7
    assert found[7, 0] == 2
    assert not (found == torch.arange(12).unsqueeze(1)).any()
    with_self = nearest_neighbors(x, 4, include_self=True)
    assert torch.equal(with_self[:, 0], torch.arange(12, dtype=torch.int32))
    assert torch.equal(with_self[:, 1:], found)


def test_there_are_at_most_all_other_rows() -> None:
    assert nearest_neighbors(torch.eye(3), 50).shape == (3, 2)
    assert nearest_neighbors(torch.eye(3), 50, include_self=True).shape == (3, 3)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_identical_rows_are_each_others_neighbors_never_their_own(
    value: float, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch, 4)
    found = nearest_neighbors(torch.full((6, 3), value), 5, metric=metric)
    assert [sorted(row) for row in found.tolist()] == [[j for j in range(6) if j != i] for i in range(6)]


def test_a_single_row_has_no_neighbors_but_itself() -> None:
    assert nearest_neighbors(torch.ones(1, 3), 4).shape == (1, 0)
    assert nearest_neighbors(torch.ones(1, 3), 4, include_self=True).tolist() == [[0]]


def test_rows_that_are_no_numbers_are_an_error() -> None:
    x = rows()
    x[4, 1], x[9, 0] = torch.nan, torch.inf
    with pytest.raises(ConfigError, match="2 of 300 rows contain NaN or infinity"):
        nearest_neighbors(x, 3)


def test_no_more_than_a_block_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, 40, 4)
    monkeypatch.setattr(neighbors, "PREPARED_ROWS", 32)
    prepared, blocks = [], []
    call, scores = neighbors.RowScale.__call__, neighbors._scores
    monkeypatch.setattr(neighbors.RowScale, "__call__", lambda s, x: prepared.append(len(x)) or call(s, x))
    monkeypatch.setattr(
        neighbors,
        "_scores",
        lambda a, b, buffer, p: blocks.append((len(a), len(b), len(buffer))) or scores(a, b, buffer, p),
    )
    nearest_neighbors(rows().half(), 3)
    assert max(prepared) == 40
    assert max(blocks) == (40, 40, 1600)
    # Each pair of blocks is computed once.
    assert len(blocks) == 8 * 9 / 2
