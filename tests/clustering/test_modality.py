"""Test the measure that says, without labels, whether text helps or hurts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from raycluster.clustering.modality import _mutual_information, text_asymmetry


def groups(n: int, spread: float, seed: int, truth: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(truth.max() + 1, 16))
    return (centers[truth] + spread * rng.normal(size=(n, 16))).astype(np.float16)


def test_sharp_text_behind_blurred_images_helps_and_foreign_text_hurts() -> None:
    truth, other = np.arange(600) % 6, np.random.default_rng(1).integers(0, 6, 600)
    blurred, sharp = groups(600, 1.5, 0, truth), groups(600, 0.3, 1, truth)
    assert text_asymmetry(blurred, sharp, 6, seed=0) > 1.05
    assert text_asymmetry(sharp, blurred, 6, seed=0) < 1 / 1.05
    foreign = groups(600, 0.3, 2, other)
    assert text_asymmetry(sharp, foreign, 6, seed=0) == pytest.approx(1.0, abs=0.5)
    assert text_asymmetry(blurred, sharp, 6, seed=0) == pytest.approx(
        1 / text_asymmetry(sharp, blurred, 6, seed=0), rel=1e-6
    )


def test_mutual_information_is_the_plain_sum_over_edges() -> None:
    labels, graph = torch.tensor([0, 0, 1, 1]), torch.tensor([[1], [0], [3], [0]])
    pairs = [(0, 0), (0, 0), (1, 1), (1, 0)]
    both = pairs + [(b, a) for a, b in pairs]
    expected = 0.0
    for a in (0, 1):
        for b in (0, 1):
            joint = both.count((a, b)) / 8
            first, second = (sum(pair[side] == value for pair in both) / 8 for side, value in ((0, a), (1, b)))
            expected += joint * math.log(joint / first / second) if joint else 0.0
    assert _mutual_information(labels, graph, 2) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [9, 40])
def test_degenerate_input_gives_a_number(n: int) -> None:
    same, varied = np.ones((n, 4), np.float16), groups(n, 1.0, 0, np.arange(n) % 3)[:, :4]
    for images, texts in ((same, same), (same, varied), (varied, same)):
        assert math.isfinite(text_asymmetry(images, texts, 3, seed=0))
