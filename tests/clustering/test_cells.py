"""Test the search in cells against the exact search, and small clusters of two levels on rows of every kind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.clustering import cells as module
from raycluster.clustering.cells import Cells, cell_neighbors, find_neighbors, make_cells, small_clusters
from raycluster.clustering.neighbors import nearest_neighbors


def groups(n: int, count: int = 40, dim: int = 64, spread: float = 0.8) -> tuple[Tensor, Tensor]:
    """Unit rows [n, dim] of overlapping groups with a falling spectrum, and the group of each row."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, dim + 1) ** -0.4
    centers = normalize(torch.randn(count, dim, generator=generator) * spectrum, dim=1)
    own = torch.randint(count, (n,), generator=generator)
    noise = normalize(torch.randn(n, dim, generator=generator) * spectrum, dim=1)
    return normalize(centers[own] + spread * noise, dim=1), own


def recall(found: Tensor, exact: Tensor) -> float:
    return float((found.unsqueeze(2) == exact.unsqueeze(1)).any(dim=1).double().mean())


def test_cells_find_nearly_all_neighbors() -> None:
    x, _ = groups(12_000)
    found = cell_neighbors(x, 20, make_cells(x, seed=0), candidates=4000)
    assert found.dtype == torch.int32
    assert recall(found, nearest_neighbors(x, 20)) > 0.98


@pytest.mark.parametrize("chunk", [module.CHUNK_BYTES, 4 * 600 * 7])
def test_cells_that_hold_all_rows_give_the_exact_neighbors(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    x, _ = groups(600)
    for cells in (make_cells(x, seed=0, count=7), make_cells(x, seed=0, count=1), Cells(torch.full((600,), 2), 4)):
        assert torch.equal(cell_neighbors(x, 9, cells, candidates=600), nearest_neighbors(x, 9))


def test_the_size_decides_whether_the_search_is_exact() -> None:
    x, _ = groups(2000)
    cells = make_cells(x, seed=0)
    near = find_neighbors(x, 9, cells, exact_rows=1999, candidates=300)
    assert torch.equal(near, cell_neighbors(x, 9, cells, 300))
    assert torch.equal(find_neighbors(x, 9, cells, exact_rows=2000, candidates=300), nearest_neighbors(x, 9))
    assert recall(near, nearest_neighbors(x, 9)) < 1


def test_the_seed_decides() -> None:
    x, _ = groups(2000)
    first, again, other = (make_cells(x, seed=seed) for seed in (3, 3, 4))
    assert first.count == 10
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)
    assert torch.equal(cell_neighbors(x, 5, first, 300), cell_neighbors(x, 5, again, 300))
    assert torch.equal(small_clusters(x, 90, seed=3)[0], small_clusters(x, 90, seed=3)[0])


def test_copies_of_one_row_are_cut_into_cells_of_bounded_size() -> None:
    x, _ = groups(4000)
    x[:3000] = x[0]
    cells = make_cells(x, seed=0)
    assert int(cells.sizes.max()) <= 10 * module.CELL_ROWS
    assert int(cells.sizes.sum()) == 4000
    near = cell_neighbors(x, 5, cells, candidates=500)
    assert int(near[:3000].max()) < 3000


def test_cells_list_each_row_once_and_skip_empty_cells() -> None:
    cells = Cells(torch.tensor([3, 1, 3, 1, 1]), 5)
    assert {cell: cells.order[rows].tolist() for cell, rows in cells} == {1: [1, 3, 4], 3: [0, 2]}
    x = torch.eye(5)
    torch.testing.assert_close(cells.centers(x)[1], normalize(x[[1, 3, 4]].sum(dim=0), dim=0))
    assert cells.centers(x)[0].abs().max() == 0


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 60), distinct=st.integers(1, 60), k=st.integers(1, 70), count=st.integers(1, 9), few=st.booleans()
)
def test_neighbors_are_distinct_other_rows(n: int, distinct: int, k: int, count: int, few: bool) -> None:
    x = groups(distinct, dim=4)[0].repeat(n, 1)[:n]
    cells = make_cells(x, seed=0, count=min(n, count))
    found = cell_neighbors(x, k, cells, candidates=1 if few else 1000)
    assert found.shape == (n, min(k, n - 1))
    for row, near in enumerate(found.tolist()):
        assert row not in near
        assert len(set(near)) == len(near)
        assert all(0 <= other < n for other in near)


def test_small_clusters_hold_rows_of_one_group() -> None:
    x, own = groups(4000, spread=0.4)
    labels, count = small_clusters(x, 160, seed=0)
    assert 120 <= count <= 200
    assert int(labels.max()) < count
    # A cluster of 25 rows of one group says all about its rows' group.
    joint = torch.zeros(count, 40).index_put_((labels, own), torch.ones(4000), accumulate=True)
    assert float(joint.amax(dim=1).sum()) / 4000 > 0.95
    assert normalized_mutual_info_score(own, labels) > 0.8


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 50), distinct=st.integers(1, 50), count=st.integers(1, 50))
def test_small_clusters_cover_rows_of_every_kind(n: int, distinct: int, count: int) -> None:
    x = groups(distinct, dim=4)[0].repeat(n, 1)[:n]
    labels, used = small_clusters(x, min(n, count), seed=0)
    assert labels.shape == (n,)
    assert int(labels.min()) >= 0
    assert int(labels.max()) < used <= n
    zero, _ = small_clusters(torch.zeros(n, 4), min(n, count), seed=0)
    assert zero.shape == (n,)
