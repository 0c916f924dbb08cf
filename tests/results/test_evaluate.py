"""Test the counts behind the scores: those of parts of the images, added, are those of all images."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from raycluster.results.evaluate import LabelCounts, add_counts, count_kept, count_labels, no_labels


def counted(counts: LabelCounts) -> dict[tuple[str, int], int]:
    table = counts.table.tocoo()
    names = counts.labels.to_pylist()
    assert len(set(names)) == len(names)
    return {(names[r], int(c)): int(n) for r, c, n in zip(table.row, table.col, table.data, strict=True)}


@pytest.mark.parametrize("labels", [["cat", "dog", "owl", None], ["cat"], [None]])
@pytest.mark.parametrize("seed", range(4))
def test_counts_of_parts_add_up(labels: list[str | None], seed: int) -> None:
    rng = np.random.default_rng(seed)
    given = [labels[i] for i in rng.integers(0, len(labels), 90)]
    clusters = rng.integers(0, 5, 90).astype(np.int32)
    cuts = [0, *np.sort(rng.integers(0, 91, 4)).tolist(), 90]
    parts = [
        count_labels(pa.chunked_array([pa.array(given[start:end], pa.string())]), clusters[start:end], 6)
        for start, end in pairwise(cuts)
    ]
    expected: dict[tuple[str, int], int] = {}
    for label, cluster in zip(given, clusters.tolist(), strict=True):
        if label is not None:
            expected[label, cluster] = expected.get((label, cluster), 0) + 1
    total = reduce(add_counts, parts, no_labels(6))
    assert counted(total) == expected
    assert total.table.shape == (len({label for label in given if label}), 6)


def test_large_strings_are_labels_too() -> None:
    one = count_labels(pa.chunked_array([pa.array(["a", "b"], pa.large_string())]), np.array([0, 1]), 2)
    other = count_labels(pa.chunked_array([pa.array(["b", None])]), np.array([1, 0]), 2)
    assert counted(add_counts(one, other)) == {("a", 0): 1, ("b", 1): 2}


def test_agreement_counts_the_images_that_have_a_cluster_in_both() -> None:
    def clusters(values: list[int | None]) -> pa.ChunkedArray:
        return pa.chunked_array([pa.array(values, pa.int32())])

    assert count_kept(clusters([0, 1, 1, None]), clusters([0, 1, 0, 1])).tolist() == [2, 3]
    assert count_kept(clusters([None]), clusters([1])).tolist() == [0, 0]
    assert count_kept(clusters([]), clusters([])).tolist() == [0, 0]
