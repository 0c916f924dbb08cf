"""Test the scores against labels, with the libraries' dense computation and with examples worked out by hand."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from raycluster.clustering.contingency import contingency_table, supervised_scores

Pairs = list[tuple[int, int]]


def scores(labels: list[int] | np.ndarray, clusters: list[int] | np.ndarray) -> dict[str, float | int | None]:
    return supervised_scores(contingency_table(np.asarray(labels), np.asarray(clusters)))


@pytest.mark.parametrize("case", [0, 1])
def test_scores_are_the_authors(case: int) -> None:
    with np.load(Path(__file__).parents[1] / "golden" / "metrics.npz", allow_pickle=False) as g:
        found = scores(np.unique(g[f"y{case}"], return_inverse=True)[1], g[f"pred{case}"])
        for name in ("acc", "nmi", "ari"):
            assert found[name] == pytest.approx(float(g[f"{name}{case}"]), rel=1e-9)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(-1, 6), st.integers(0, 8)), min_size=1, max_size=80))
def test_scores_are_those_of_all_rows_together(pairs: Pairs) -> None:
    labels, clusters = np.array(pairs).T
    found, known = scores(labels, clusters), labels >= 0
    assert found["n_labelled"] == known.sum()
    if not known.any():
        assert (found["acc"], found["nmi"], found["ari"]) == (None, None, None)
        return
    dense = np.zeros((7, 9), int)
    np.add.at(dense, (labels[known], clusters[known]), 1)
    assert found["acc"] == dense[linear_sum_assignment(-dense)].sum() / known.sum()
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(labels[known], clusters[known]), abs=1e-12)
    assert found["ari"] == pytest.approx(adjusted_rand_score(labels[known], clusters[known]), abs=1e-12)


def test_only_labelled_rows_count() -> None:
    found = scores([0, -1, 1, 1, -1], [3, 0, 1, 1, 1])
    assert found == {"acc": 1.0, "nmi": pytest.approx(1.0), "ari": 1.0, "n_labelled": 3}
    assert scores([-1, -1], [0, 1]) == {"acc": None, "nmi": None, "ari": None, "n_labelled": 0}
    assert supervised_scores(csr_array((0, 5), dtype=np.int64))["n_labelled"] == 0


def test_more_clusters_than_classes_leave_rows_unmatched() -> None:
    assert scores([0, 0, 1, 1], [0, 1, 2, 2])["acc"] == 0.75


def test_one_label_says_nothing_of_several_clusters() -> None:
    assert scores([0, 0, 0], [0, 1, 1]) == {
        "acc": 2 / 3,
        "nmi": pytest.approx(0, abs=1e-12),
        "ari": 0.0,
        "n_labelled": 3,
    }
    assert scores([4, 4], [2, 2]) == {"acc": 1.0, "nmi": 1.0, "ari": 1.0, "n_labelled": 2}


def test_numbers_of_ten_million_rows_are_exact() -> None:
    # Two labels of five million rows each, and a cluster for each label, but one row of each is in the other's.
    half = 5_000_000
    table = csr_array(np.array([[half - 1, 1], [1, half - 1]]))
    found = supervised_scores(table)
    assert found["acc"] == (half - 1) / half
    together, same = 2 * math.comb(half, 2), 2 * math.comb(half - 1, 2)
    total = math.comb(2 * half, 2)
    expected = together**2 / total
    assert found["ari"] == pytest.approx((same - expected) / (together - expected), rel=1e-12)


def test_scores_against_labels_do_not_depend_on_names_or_order() -> None:
    rng = np.random.default_rng(0)
    labels, clusters = rng.integers(0, 5, 200), rng.integers(0, 4, 200)
    one = scores(labels, clusters)
    order = rng.permutation(200)
    other = scores(9 - labels[order], (7 - clusters)[order])
    assert one == pytest.approx(other)
    best = max(
        np.mean([mapping[c] == y for c, y in zip(clusters, labels, strict=True)])
        for mapping in itertools.permutations(range(5), 4)
    )
    assert one["acc"] == pytest.approx(best)
