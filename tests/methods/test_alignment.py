"""Test distribution alignment: what it does to probabilities, and over how many rows its mean looks back."""

from __future__ import annotations

import torch

from raycluster.methods.losses.alignment import ROWS_A_CLUSTER, DistributionAlignment

TARGET = torch.tensor([0.5, 0.3, 0.2])


def test_probabilities_of_the_target_sizes_stay_as_they_are() -> None:
    alignment = DistributionAlignment(TARGET)
    probabilities = torch.tensor([[0.9, 0.05, 0.05], [0.2, 0.5, 0.3]])
    torch.testing.assert_close(alignment(probabilities), probabilities)


def test_a_cluster_that_has_grown_counts_less() -> None:
    alignment = DistributionAlignment(TARGET)
    grown = torch.tensor([[0.8, 0.1, 0.1]]).expand(ROWS_A_CLUSTER * 3, 3)
    alignment.update(grown)
    torch.testing.assert_close(alignment.running, grown[0])
    expected = torch.tensor([0.4, 0.3, 0.3]) * TARGET / grown[0]
    torch.testing.assert_close(alignment(torch.tensor([[0.4, 0.3, 0.3]]))[0], expected / expected.sum())
    # A row that equals the running mean becomes the target.
    torch.testing.assert_close(alignment(grown[:1])[0], TARGET)


def test_the_mean_looks_back_at_a_number_of_rows_a_cluster() -> None:
    alignment = DistributionAlignment(TARGET)
    alignment.update(torch.tensor([[0.0, 0.0, 1.0]]).expand(ROWS_A_CLUSTER, 3))
    torch.testing.assert_close(alignment.running, TARGET * 2 / 3 + torch.tensor([0.0, 0.0, 1 / 3]))


def test_a_vanished_cluster_divides_by_no_zero() -> None:
    alignment = DistributionAlignment(TARGET)
    alignment.update(torch.tensor([[1.0, 0.0, 0.0]]).expand(ROWS_A_CLUSTER * 3, 3))
    assert torch.isfinite(alignment(torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]]))).all()
