"""Test SoftMatch's weights against recorded values and against plain sums."""

from __future__ import annotations

import math

import pytest
import torch
from golden import load
from torch.nn.functional import cross_entropy

from raycluster.methods.losses.soft_match import SMALLEST_VARIANCE, SoftMatch


@pytest.mark.parametrize("momentum", [0.999, 0.5])
def test_three_steps_are_the_recorded_ones(momentum: float) -> None:
    g, soft_match = load("seic_softmatch_3steps"), SoftMatch(momentum)
    for step in range(3):
        soft_match.update(g["confidence"][step])
        weights = soft_match.weights(g["confidence"][step])
        expected = {name: g[f"m{momentum}_{name}{step + 1}"] for name in ("weights", "mean", "var")}
        torch.testing.assert_close(weights, expected["weights"], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(soft_match.mean, expected["mean"], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(soft_match.variance, expected["var"], rtol=1e-9, atol=1e-12)


def test_the_loss_is_the_recorded_one_and_the_plain_sum() -> None:
    g, soft_match = load("seic_softmatch_3steps"), SoftMatch(0.999)
    for step in range(3):
        soft_match.update(g["confidence"][step])
    weights, logits = soft_match.weights(g["confidence"][2]), g["strong_logits"]
    found = (weights * cross_entropy(logits, g["pseudo_labels"], reduction="none")).mean()
    plain = sum(
        float(w) * (math.log(sum(math.exp(v) for v in row)) - row[int(y)])
        for w, row, y in zip(weights, logits.tolist(), g["pseudo_labels"], strict=True)
    ) / len(weights)
    assert float(found) == pytest.approx(plain, rel=1e-12)
    torch.testing.assert_close(found, g["self_enhancement_loss"], rtol=1e-6, atol=1e-6)


def test_equal_confidences_have_a_variance() -> None:
    soft_match, confidence = SoftMatch(0.9), torch.full((4,), 0.7)
    soft_match.update(confidence)
    torch.testing.assert_close(soft_match.weights(confidence), torch.ones(4).double())
    assert float(soft_match.variance) == SMALLEST_VARIANCE


def test_the_state_travels_in_a_checkpoint() -> None:
    one, two = SoftMatch(0.9), SoftMatch(0.9)
    one.update(torch.tensor([0.5, 0.9]))
    two.load_state_dict(one.state_dict())
    later = torch.tensor([0.6, 0.4])
    for soft_match in (one, two):
        soft_match.update(later)
    assert torch.equal(one.weights(later), two.weights(later))
