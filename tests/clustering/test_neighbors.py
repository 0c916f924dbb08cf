from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from raycluster.clustering.neighbors import nearest_neighbors


def test_neighbors_are_the_authors() -> None:
    with np.load(Path(__file__).parents[1] / "golden" / "neighbors_N60.npz", allow_pickle=False) as g:
        found = nearest_neighbors(torch.from_numpy(g["features_unit"]), int(g["topk"]))
        assert found.tolist() == g["tac_indices"].tolist()


def test_a_duplicate_stays_a_neighbor_and_the_row_itself_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raycluster.clustering.neighbors.CHUNK_BYTES", 4 * 12 * 5)
    x = normalize(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    x[7] = x[2]
    found = nearest_neighbors(x, 3)
    assert found[2, 0] == 7
    assert found[7, 0] == 2
    assert not (found == torch.arange(12).unsqueeze(1)).any()
    with_self = nearest_neighbors(x, 4, include_self=True)
    assert torch.equal(with_self[:, 0], torch.arange(12))
    assert torch.equal(with_self[:, 1:], found)


def test_there_are_at_most_all_other_rows() -> None:
    assert nearest_neighbors(torch.eye(3), 50).shape == (3, 2)


@pytest.mark.parametrize("include_self", [False, True])
def test_neighbors_are_those_of_a_plain_sort(include_self: bool) -> None:
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    scores = (x @ x.T).tolist()
    for i, found in enumerate(nearest_neighbors(x, 6, include_self=include_self).tolist()):
        others = sorted((j for j in range(30) if j != i), key=lambda j: -scores[i][j])
        assert found == ([i, *others[:5]] if include_self else others[:6])


def test_identical_rows_are_each_others_neighbors_never_their_own() -> None:
    found = nearest_neighbors(torch.ones(6, 3), 5)
    assert [sorted(row) for row in found.tolist()] == [[j for j in range(6) if j != i] for i in range(6)]


def test_a_single_row_has_no_neighbors_but_itself() -> None:
    assert nearest_neighbors(torch.ones(1, 3), 4).shape == (1, 0)
    assert nearest_neighbors(torch.ones(1, 3), 4, include_self=True).tolist() == [[0]]
