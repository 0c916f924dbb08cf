"""Test the scores of an assignment that is measured with the embeddings of another encoder, and the share of images that agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from raycluster.results.evaluate import evaluate, share_kept
from raycluster.storage.location import locate
from raycluster.tables.rows import vector_column


def assignments(clusters: list[int | None]) -> pa.Table:
    return pa.table(
        {
            "row_id": np.arange(len(clusters)),
            "cluster": pa.array(clusters, pa.int32()),
            "confidence": pa.array([None if c is None else 0.9 for c in clusters], pa.float32()),
            "margin": pa.array([None if c is None else 0.8 for c in clusters], pa.float32()),
        }
    )


def test_a_picture_that_only_the_tuned_encoder_found_has_a_label_score_and_no_other(tmp_path: Path) -> None:
    n = 60
    known = np.arange(1, n)
    embeddings = np.eye(2, 4, dtype=np.float16)[known % 2]
    file = locate(str(tmp_path / "part-0.parquet"))
    file.write_table(pa.table({"row_id": known, "embedding": vector_column(embeddings)}))
    manifest = pa.table({"row_id": np.arange(n), "label": [str(i % 2) for i in range(n)]})
    scores, advice = evaluate(
        assignments([i % 2 for i in range(n)]), manifest, known, [file], None, n_clusters=2, seed=0, advise=False
    )
    assert (scores["n_rows"], scores["n_labelled"], scores["acc"]) == (n, n, 1.0)
    assert scores["neighborhood_consistency"] == 1.0
    assert advice == {}


def test_agreement_counts_the_images_that_have_a_cluster_in_both() -> None:
    assert share_kept(assignments([0, 1, 1, None]), assignments([0, 1, 0, 1])) == 2 / 3
    assert share_kept(assignments([None]), assignments([1])) is None
