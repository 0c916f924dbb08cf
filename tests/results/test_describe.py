"""Test the names of clusters, and the table that sums up each cluster."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycluster.config import ReportConfig
from raycluster.results.describe import name_clusters, noun_affinity, summarize
from raycluster.tables.schemas import ASSIGNMENTS, CLUSTERS


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def groups(k: int, each: int, d: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit image embeddings around k things, their clusters, and the nouns of the things. Images and texts lie in different cones."""
    rng = np.random.default_rng(1)
    things = unit(rng.normal(size=(k, d)))
    image_cone, text_cone = unit(rng.normal(size=(1, d))), unit(rng.normal(size=(1, d)))
    images = unit(np.repeat(things, each, axis=0) + image_cone + 0.02 * rng.normal(size=(k * each, d)))
    decoy = unit(image_cone + text_cone)  # close to all images, but says nothing about any
    return images, np.repeat(np.arange(k), each), np.vstack([unit(things + text_cone), decoy])


def test_names_survive_the_modality_gap() -> None:
    images, clusters, nouns = groups(5, 20)
    names = name_clusters(noun_affinity(images, clusters, nouns, 5), [*"abcde", "picture"])
    assert [entry["name"] for entry in names] == list("abcde")
    assert all(entry["nouns"][0] == entry["name"] for entry in names)


def test_affinity_is_the_plain_formula() -> None:
    images, clusters, nouns = groups(3, 4)
    each = np.exp(images @ nouns.T / 0.03)
    each /= each.sum(axis=1, keepdims=True)
    found = noun_affinity(images, clusters, nouns, 4)
    expected = np.log(each[clusters == 1].mean(axis=0) + 1e-12) - 0.5 * np.log(each.mean(axis=0) + 1e-12)
    np.testing.assert_allclose(found[1], expected, rtol=1e-4)
    assert np.isneginf(found[3]).all()


def test_no_two_clusters_share_a_name() -> None:
    affinity = np.tile(np.random.default_rng(2).normal(size=(1, 60)), (20, 1))
    names = name_clusters(affinity, [f"noun {i}" for i in range(60)])
    assert len({entry["name"] for entry in names}) == 20


def test_without_enough_nouns_clusters_keep_their_numbers() -> None:
    affinity = np.array([[0.3], [-np.inf], [0.5]])
    assert [entry["name"] for entry in name_clusters(affinity, ["cat"])] == ["cluster 0", "cluster 1", "cat"]
    assert name_clusters(np.empty((3, 0)), [])[2] == {"name": "cluster 2", "nouns": []}


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

    def images(row_ids: np.ndarray) -> pa.Table:
        return table.filter(pc.is_in(table["row_id"], pa.array(row_ids))).select(
            ["row_id", "image_id", "uri", "confidence"]
        )

    clusters = summarize(table, images, names, ReportConfig(most_typical=2, least_typical=2))
    assert clusters.schema == CLUSTERS
    cat, dog, owl = clusters.to_pylist()
    assert (cat["size"], dog["size"], owl["size"]) == (3, 0, 1)
    assert [image["image_id"] for image in cat["exemplars"]] == ["a", "b"]
    assert [image["image_id"] for image in cat["least_typical"]] == ["e"]
    assert dog["mean_confidence"] is None
    np.testing.assert_allclose(cat["mean_confidence"], 1.9 / 3, rtol=1e-6)
