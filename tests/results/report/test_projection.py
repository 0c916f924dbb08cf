"""Test the map of embeddings: the seed alone decides it, groups stay together, and few or equal rows have a defined place."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from raycluster.results.report.projection import project


def groups(n: int, k: int, d: int = 32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % k
    return (rng.normal(size=(k, d))[labels] + 0.2 * rng.normal(size=(n, d))).astype(np.float32), labels


@pytest.mark.long
def test_same_rows_and_seed_give_the_same_map_on_any_number_of_threads() -> None:
    rows, _ = groups(150, 5)
    with threadpool_limits(1):
        one = project(rows, 3)
    with threadpool_limits(4):
        four = project(rows, 3)
    np.testing.assert_array_equal(one, four)


def test_map_is_centered_and_fills_the_unit_square() -> None:
    plane = project(groups(80, 4)[0], 0)
    assert plane.dtype == np.float32
    assert np.abs(plane).max() == pytest.approx(1)
    np.testing.assert_allclose(plane.max(axis=0) + plane.min(axis=0), 0, atol=1e-6)


@pytest.mark.long
def test_groups_stay_together() -> None:
    rows, labels = groups(200, 8)
    plane = project(rows, 0)
    nearest = NearestNeighbors(n_neighbors=6).fit(plane).kneighbors(plane, return_distance=False)[:, 1:]
    assert (labels[nearest] == labels[:, None]).mean() > 0.95


def test_length_of_the_rows_does_not_matter() -> None:
    rows, _ = groups(8, 3)
    np.testing.assert_allclose(project(rows, 0), project(rows * np.arange(1, 9)[:, None], 0), atol=1e-5)


@pytest.mark.parametrize("n", [*range(14), 40])
@pytest.mark.parametrize("d", [1, 2, 64])
def test_few_rows_and_few_dimensions_are_defined(n: int, d: int) -> None:
    plane = project(np.random.default_rng(n).normal(size=(n, d)).astype(np.float32), 0)
    assert plane.shape == (n, 2)
    assert np.isfinite(plane).all()
    assert np.abs(plane).max(initial=0) <= 1


@pytest.mark.parametrize("rows", [np.ones((30, 8)), np.zeros((30, 8)), np.ones((3, 8))])
def test_identical_rows_lie_at_the_origin(rows: np.ndarray) -> None:
    np.testing.assert_array_equal(project(rows.astype(np.float32), 0), 0)


def test_many_copies_of_a_few_rows_are_defined() -> None:
    plane = project(np.repeat(groups(4, 4)[0], 20, axis=0), 0)
    assert np.isfinite(plane).all()
    assert len(np.unique(plane[::20].round(2), axis=0)) == 4
