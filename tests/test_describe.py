from __future__ import annotations

import numpy as np
import pyarrow as pa

from raycluster.config import ReportConfig
from raycluster.describe import name_clusters, prototypes, summarize
from raycluster.tables import ASSIGNMENTS, CLUSTERS


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_prototypes_are_unit_means_and_zero_where_empty() -> None:
    x = unit(np.random.default_rng(0).normal(size=(6, 4)))
    centers = prototypes(x, np.array([0, 0, 2, 2, 2, 0]), 3)
    np.testing.assert_allclose(centers[0], unit(x[[0, 1, 5]].mean(axis=0, keepdims=True))[0], rtol=1e-5)
    assert not centers[1].any()


def test_names_survive_the_modality_gap() -> None:
    rng = np.random.default_rng(1)
    things = unit(rng.normal(size=(5, 32)))
    image_cone, text_cone = 3 * unit(rng.normal(size=(1, 32))), 3 * unit(rng.normal(size=(1, 32)))
    nouns = unit(things + text_cone)
    # A noun near the pictures' cone is nearest to every cluster, and says nothing about any.
    decoy = unit(image_cone + text_cone)
    names = name_clusters(
        unit(things + image_cone).astype(np.float32), [*"abcde", "picture"], np.vstack([nouns, decoy])
    )
    assert [entry["name"] for entry in names] == list("abcde")


def test_no_two_clusters_share_a_name() -> None:
    rng = np.random.default_rng(2)
    centers = unit(rng.normal(size=(1, 16)) + 0.01 * rng.normal(size=(20, 16)))
    nouns = unit(rng.normal(size=(60, 16)))
    names = name_clusters(centers, [f"noun {i}" for i in range(60)], nouns)
    assert len({entry["name"] for entry in names}) == 20
    assert all(entry["nouns"][0] == entry["name"] for entry in names)


def test_without_enough_nouns_clusters_keep_their_numbers() -> None:
    centers = unit(np.random.default_rng(3).normal(size=(3, 8)))
    centers[1] = 0
    assert [e["name"] for e in name_clusters(centers, ["cat"], centers[:1])].count("cat") == 1
    assert name_clusters(centers, [], np.empty((0, 8)))[2] == {"name": "cluster 2", "nouns": []}


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
    names = [{"name": name, "nouns": [name]} for name in ("cat", "dog", "owl")]
    clusters = summarize(table, names, ReportConfig(most_typical=2, least_typical=2))
    assert clusters.schema == CLUSTERS
    cat, dog, owl = clusters.to_pylist()
    assert (cat["size"], dog["size"], owl["size"]) == (3, 0, 1)
    assert [image["image_id"] for image in cat["exemplars"]] == ["a", "b"]
    assert [image["image_id"] for image in cat["least_typical"]] == ["e"]
    assert dog["mean_confidence"] is None
    np.testing.assert_allclose(cat["mean_confidence"], 1.9 / 3, rtol=1e-6)
