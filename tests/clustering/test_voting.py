"""Test the vote of several labelings, whose cluster numbers mean nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from raycluster.clustering.voting import agreement, aligned, vote

TRUTH = torch.arange(60) % 4


def renumbered(order: list[int], wrong: list[int]) -> torch.Tensor:
    """The true labels with other cluster numbers, where the rows `wrong` are in the next cluster."""
    labels = TRUTH.clone()
    labels[wrong] = (labels[wrong] + 1) % 4
    return torch.tensor(order)[labels]


def test_alignment_undoes_renumbering() -> None:
    assert torch.equal(aligned(renumbered([2, 0, 3, 1], []), TRUTH, 4), TRUTH)


def test_agreement_is_mutual_information_of_all_pairs() -> None:
    votes = [renumbered([2, 0, 3, 1], [1, 2]), renumbered([0, 1, 2, 3], [7]), TRUTH]
    found = agreement(votes)
    np.testing.assert_array_equal(found, found.T)
    assert found[0, 1] == pytest.approx(normalized_mutual_info_score(votes[0], votes[1]))
    np.testing.assert_array_equal(found.diagonal(), 1)


def test_the_majority_mends_what_each_gets_wrong() -> None:
    votes = [
        renumbered([2, 0, 3, 1], [0, 1, 2]),
        renumbered([0, 1, 2, 3], [10, 11]),
        renumbered([3, 2, 1, 0], [20, 21, 22]),
    ]
    for reference in range(3):
        winner = vote(votes, reference, 4)
        assert normalized_mutual_info_score(winner, TRUTH) == 1


def test_of_equal_votes_the_smallest_label_wins() -> None:
    a, b = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 1])
    assert vote([a, b], 0, 3).tolist() == [0, 0, 1, 1, 1]
    assert vote([b, a], 0, 3).tolist() == [0, 0, 1, 1, 1]


def test_unused_clusters_are_no_trouble() -> None:
    assert vote([torch.zeros(5, dtype=torch.int64)] * 3, 0, 4).tolist() == [0] * 5
