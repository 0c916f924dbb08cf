"""Test drift: its figures, its verdict, and that chance alone is no drift."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raycluster.model import drift as room
from raycluster.model.drift import Snapshot, drift, jensen_shannon, snapshot

NAMES = ["cat", "dog", "owl", "fox"]


def of(sizes: list[int], confidence: list[float]) -> Snapshot:
    return Snapshot(np.array(sizes), np.array(confidence, np.float32))


def test_a_snapshot_has_the_sizes_and_sorted_confidences() -> None:
    found = snapshot(np.array([1, 0, 2, 0]), np.array([0.5, 0.9, 0.1], np.float32))
    assert found.sizes.tolist() == [1, 0, 2, 0]
    assert found.confidence.tolist() == pytest.approx([0.1, 0.5, 0.9])


def test_of_many_confidences_an_even_sample_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CONFIDENCES", 5)
    found = snapshot(np.array([9]), np.arange(9)[::-1] / 8)
    assert found.confidence.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.sizes.tolist() == [9]


def test_figures_of_a_hand_made_table() -> None:
    then, now = of([4, 4, 0, 0], [0.2, 0.4, 0.6, 0.8]), of([1, 0, 3, 0], [0.1, 0.3, 0.5, 0.9])
    found = drift(then, now, flagged=1, expected=0.01, names=NAMES, dim=8)
    assert (found["n"], found["n_training"]) == (4, 8)
    assert (found["outliers"], found["outliers_expected"]) == (0.25, 0.01)
    assert found["mean_confidence"] == pytest.approx(0.45)
    assert found["mean_confidence_training"] == pytest.approx(0.5)
    assert found["confidence_shift"] == 0.25
    # p = (½, ½, 0), q = (¼, 0, ¾), their mean (⅜, ¼, ⅜).
    p_part = 0.5 * math.log2(0.5 / 0.375) + 0.5 * math.log2(0.5 / 0.25)
    q_part = 0.25 * math.log2(0.25 / 0.375) + 0.75 * math.log2(0.75 / 0.375)
    assert found["size_divergence"] == pytest.approx((p_part + q_part) / 2)
    assert (found["sizes"], found["sizes_training"]) == ([1, 0, 3, 0], [4, 4, 0, 0])
    assert found["grew"] == [{"cluster": 2, "name": "owl", "training": 0.0, "now": 0.75}]
    assert found["shrank"] == [
        {"cluster": 1, "name": "dog", "training": 0.5, "now": 0.0},
        {"cluster": 0, "name": "cat", "training": 0.5, "now": 0.25},
    ]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [([1, 1], [5, 5], 0.0), ([3, 0], [0, 7], 1.0), ([9, 0, 0], [9, 0, 0], 0.0)],
)
def test_the_divergence_goes_from_0_to_1(a: list[int], b: list[int], expected: float) -> None:
    assert jensen_shannon(np.array(a), np.array(b)) == pytest.approx(expected)


def test_nothing_is_said_of_no_pictures() -> None:
    found = drift(of([4, 4], [0.5] * 8), of([0, 0], []), flagged=0, expected=0.01, names=NAMES, dim=8)
    assert found["n"] == 0
    assert (
        found["outliers"] is found["mean_confidence"] is found["confidence_shift"] is found["size_divergence"] is None
    )
    assert not found["drifted"]
    assert found["verdict"] == ["no picture could be read, so nothing can be said about drift"]


def like(seed: int, n: int, low: float = 0.0, shares: tuple[float, ...] = (0.25,) * 4) -> Snapshot:
    rng = np.random.default_rng(seed)
    sizes = np.bincount(rng.choice(4, n, p=shares), minlength=4)
    return snapshot(sizes, rng.uniform(low, 1, n).astype(np.float32))


@pytest.mark.parametrize("n", [5, 50, 5000])
def test_chance_alone_is_no_drift(n: int) -> None:
    then = like(0, 2000)
    for seed in range(1, 40):
        flagged = np.random.default_rng(seed).binomial(n, 0.01)
        found = drift(then, like(seed, n), flagged if n > 5 else 0, 0.01, NAMES, dim=64)
        assert found["verdict"] == ["no drift: the pictures are like those the model was trained on"]


@pytest.mark.parametrize(
    ("now", "flagged", "words"),
    [
        (like(1, 300), 30, "10.0% of the pictures are unlike anything the model has seen, but only 1.0% are expected"),
        (
            like(1, 300, low=0.5),
            3,
            "the model is more sure of the pictures than of the training set: the mean confidence is 0.7",
        ),
        (like(1, 300, shares=(0.7, 0.1, 0.1, 0.1)), 3, "cluster sizes have changed (divergence 0."),
    ],
)
def test_each_kind_of_drift_is_named(now: Snapshot, flagged: int, words: str) -> None:
    found = drift(like(0, 2000), now, flagged, 0.01, NAMES, dim=64)
    assert found["drifted"]
    assert found["verdict"][0] == "drift: the pictures are not like those the model was trained on"
    (finding,) = found["verdict"][1:]
    assert words in finding


def test_clusters_that_grew_are_named_first() -> None:
    found = drift(like(0, 2000), like(1, 300, shares=(0.7, 0.1, 0.1, 0.1)), 3, 0.01, NAMES, dim=64)
    assert found["grew"][0]["name"] == "cat"
    assert ": cat 2" in found["verdict"][1]


def test_a_model_of_few_rows_is_not_trusted_to_be_as_sure_of_new_ones() -> None:
    now = like(1, 300, low=0.5)
    assert drift(like(0, 500), now, 3, 0.01, NAMES, dim=10)["drifted"]
    assert not drift(like(0, 500), now, 3, 0.01, NAMES, dim=500)["drifted"]
