"""Test the table that sums up each cluster: whatever the parts of the assignments, it is what a look at all rows gives."""

from __future__ import annotations

from functools import partial, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raycluster.results.describe import Shown, Summary, clusters_table, merge, summarize
from raycluster.tables.schemas import ASSIGNMENTS, CLUSTERS


def assignments(rng: np.random.Generator, n: int, clusters: list[int]) -> pa.Table:
    """Rows with ids in no order, of these clusters. Some have no cluster, and few different confidences give many ties."""
    ids = rng.permutation(3 * n)[:n]
    ok = rng.random(n) < 0.9
    confidence = (rng.integers(1, 9, n) / 8).astype(np.float32)
    chosen = rng.choice(clusters, n).astype(np.int32)
    return pa.table(
        {
            "row_id": ids,
            "image_id": [f"image {i}" for i in ids],
            "uri": [f"/photos/{i}.jpg" for i in ids],
            "cluster": pa.array(chosen, mask=~ok),
            "confidence": pa.array(confidence, mask=~ok),
        }
    )


def plain(rows: pa.Table, n_clusters: int, shown: Shown) -> list[dict[str, Any]]:
    """The clusters table from all rows at once."""
    table: list[dict[str, Any]] = []
    for cluster in range(n_clusters):
        own = [row for row in rows.to_pylist() if row["cluster"] == cluster]
        own.sort(key=lambda row: (-row["confidence"], row["row_id"]))
        for row in own:
            del row["cluster"]
        mean = np.float32(np.mean([row["confidence"] for row in own])) if own else None
        rest = own[shown.most :][::-1]
        table.append(
            {"cluster": cluster, "name": f"name {cluster}", "nouns": [f"noun {cluster}"] * (cluster % 3), "size": len(own),
             "mean_confidence": mean, "exemplars": own[: shown.most], "least_typical": rest[: shown.least]}
        )  # fmt: skip
    return table


def table_of(summary: Summary, rows: pa.Table, n_clusters: int, shown: Shown) -> pa.Table:
    ids = np.unique(summary.row_id)
    order = np.argsort(rows["row_id"].to_numpy())
    images = rows.take(order[np.searchsorted(rows["row_id"].to_numpy()[order], ids)]) if len(ids) else None
    names = [{"name": f"name {c}", "nouns": [f"noun {c}"] * (c % 3)} for c in range(n_clusters)]
    return clusters_table(summary, images, names, shown)


@pytest.mark.parametrize("shown", [Shown(3, 2), Shown(12, 6), Shown(0, 4), Shown(2, 0), Shown(0, 0)])
@pytest.mark.parametrize("seed", range(6))
def test_the_table_of_parts_is_that_of_all_rows(shown: Shown, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Clusters 0, 4 and 6 are empty.
    rows, n_clusters = assignments(rng, int(rng.integers(1, 120)), [1, 2, 3, 5]), 7
    cuts = np.sort(rng.integers(0, len(rows) + 1, 5))
    parts = [
        rows.slice(start, end - start).combine_chunks()
        for start, end in zip([0, *cuts], [*cuts, len(rows)], strict=True)
    ]
    summaries = [summarize(part, n_clusters, shown) for part in parts]
    rng.shuffle(summaries)
    found = reduce(partial(merge, shown=shown), summaries)
    assert len(found.row_id) <= n_clusters * (shown.most + shown.least)
    table = table_of(found, rows, n_clusters, shown)
    assert table.schema == CLUSTERS
    assert table.to_pylist() == plain(rows, n_clusters, shown)
    table.validate(full=True)


def test_without_any_cluster_the_table_says_so() -> None:
    shown = Shown(2, 1)
    rows = assignments(np.random.default_rng(0), 5, [0]).slice(0, 0)
    nothing = pa.array([None] * 5, pa.int32())
    failed = pa.table({"row_id": np.arange(5), "cluster": nothing, "confidence": pa.array([None] * 5, pa.float32())})
    for part in (rows, failed):
        summary = summarize(part, 2, shown)
        found = table_of(merge(summary, summary, shown), rows, 2, shown)
        assert found.to_pylist() == plain(rows, 2, shown)


def test_summary_orders_images_by_confidence_and_ties_by_row() -> None:
    table = pa.table(
        [
            [5, 1, 2, 3, 4],
            ["e", "a", "b", "c", "d"],
            ["E", "A", "B", "C", "D"],
            ["ok", "ok", "ok", "ok", "missing"],
            [0, 0, 0, 2, None],
            [0.5, 0.9, 0.5, 0.7, None],
            [0.1, 0.8, 0.1, 0.4, None],
            [1, 1, 1, 0, None],
        ],
        schema=ASSIGNMENTS,
    )
    shown = Shown(2, 2)
    cat, dog, owl = table_of(summarize(table, 3, shown), table, 3, shown).to_pylist()
    assert (cat["size"], dog["size"], owl["size"]) == (3, 0, 1)
    assert [image["image_id"] for image in cat["exemplars"]] == ["a", "b"]
    assert [image["image_id"] for image in cat["least_typical"]] == ["e"]
    assert dog["mean_confidence"] is None
    np.testing.assert_allclose(cat["mean_confidence"], 1.9 / 3, rtol=1e-6)
