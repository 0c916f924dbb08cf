"""Test the names of clusters: the affinity of nouns, computed in blocks, and the matching of one noun to each cluster."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from raycluster.results import naming
from raycluster.results.naming import Candidates, best_nouns, name_clusters


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


def found(images: np.ndarray, clusters: np.ndarray, nouns: np.ndarray, n_clusters: int) -> Candidates:
    given = (torch.from_numpy(images.astype(np.float32)), torch.from_numpy(clusters), torch.from_numpy(nouns).float())
    return best_nouns(*given, n_clusters)


def candidates(affinity: np.ndarray) -> Candidates:
    order = np.argsort(-affinity, axis=1, kind="stable")
    return Candidates(np.take_along_axis(affinity, order, axis=1).astype(np.float32), order)


def plain_affinity(images: np.ndarray, clusters: np.ndarray, nouns: np.ndarray, n_clusters: int) -> np.ndarray:
    """The affinity of every cluster to every noun, [C, M], with all votes in memory."""
    votes = np.exp(images @ nouns.T / 0.03)
    votes /= votes.sum(axis=1, keepdims=True)
    prior = 0.5 * np.log(votes.mean(axis=0) + 1e-12)
    empty = np.full(len(nouns), -np.inf)
    means = (votes[clusters == c].mean(axis=0) if (clusters == c).any() else None for c in range(n_clusters))
    return np.array([empty if mean is None else np.log(mean + 1e-12) - prior for mean in means])


def test_names_survive_the_modality_gap() -> None:
    images, clusters, nouns = groups(5, 20)
    names = name_clusters(found(images, clusters, nouns, 5), [*"abcde", "picture"])
    assert [entry["name"] for entry in names] == list("abcde")
    assert all(entry["nouns"][0] == entry["name"] for entry in names)


def test_affinity_is_the_plain_formula() -> None:
    images, clusters, nouns = groups(3, 4)
    best, expected = found(images, clusters, nouns, 4), plain_affinity(images, clusters, nouns, 4)
    np.testing.assert_allclose(best.affinity, np.take_along_axis(expected, best.nouns, axis=1), rtol=1e-4)
    assert (np.diff(best.affinity[:3]) <= 0).all()
    assert np.isneginf(best.affinity[3]).all()


@pytest.mark.parametrize("blocks", [1, 2, 5, 13])
def test_blocks_of_clusters_and_images_give_the_same_nouns(monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    rng = np.random.default_rng(4)
    images, clusters = unit(rng.normal(size=(200, 16))), rng.integers(0, 12, 200)
    nouns = unit(rng.normal(size=(300, 16)))
    monkeypatch.setattr(naming, "VOTES_BYTES", 4 * 300 * -(-13 // blocks))
    monkeypatch.setattr(naming, "SCORES_BYTES", 4 * 300 * 7)
    best, expected = found(images, clusters, nouns, 13), candidates(plain_affinity(images, clusters, nouns, 13))
    assert best.nouns.shape == (13, naming.CANDIDATES)
    np.testing.assert_array_equal(best.nouns[:12], expected.nouns[:12, : naming.CANDIDATES])
    np.testing.assert_allclose(best.affinity[:12], expected.affinity[:12, : naming.CANDIDATES], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_clusters", [3, 40, 120])
def test_names_are_those_of_the_best_matching_with_all_nouns(seed: int, n_clusters: int) -> None:
    rng = np.random.default_rng(seed)
    centers = unit(rng.normal(size=(n_clusters, 24)))
    images = unit(np.repeat(centers, 6, axis=0) + 0.1 * rng.normal(size=(6 * n_clusters, 24)))
    clusters, nouns = np.repeat(np.arange(n_clusters), 6), unit(rng.normal(size=(400, 24)))
    affinity = plain_affinity(images, clusters, nouns, n_clusters)
    matched = linear_sum_assignment(-affinity)[1]
    names = name_clusters(found(images, clusters, nouns, n_clusters), [f"noun {i}" for i in range(400)])
    assert [entry["name"] for entry in names] == [f"noun {i}" for i in matched]
    for entry, own in zip(names, affinity, strict=True):
        others = [f"noun {i}" for i in np.argsort(-own)[:6] if f"noun {i}" != entry["name"]]
        assert entry["nouns"] == [entry["name"], *others[:4]]


def test_no_two_clusters_share_a_name() -> None:
    affinity = np.tile(np.random.default_rng(2).normal(size=(1, 60)), (20, 1))
    names = name_clusters(candidates(affinity), [f"noun {i}" for i in range(60)])
    assert {entry["name"] for entry in names} == {f"noun {i}" for i in np.argsort(-affinity[0])[:20]}


def test_without_enough_nouns_clusters_keep_their_numbers() -> None:
    affinity = np.array([[0.3], [-np.inf], [0.5]])
    names = name_clusters(candidates(affinity), ["cat"])
    assert [entry["name"] for entry in names] == ["cluster 0", "cluster 1", "cat"]
    assert naming.unnamed(3)[2] == {"name": "cluster 2", "nouns": []}


def test_as_many_clusters_as_possible_have_a_name() -> None:
    # With the largest affinities alone cluster 0 would take the only noun of cluster 1.
    few = Candidates(np.array([[9.0, 0.0], [8.0, 8.0]], np.float32), np.array([[0, 1], [0, 0]]))
    assert [entry["name"] for entry in name_clusters(few, ["cat", "dog"])] == ["dog", "cat"]


@pytest.mark.long
def test_ten_thousand_clusters_are_named() -> None:
    rng = np.random.default_rng(0)
    nouns = np.stack([rng.choice(11_000, 100, replace=False) for _ in range(10_000)])
    affinity = -np.sort(-rng.normal(size=nouns.shape), axis=1)
    names = name_clusters(Candidates(affinity.astype(np.float32), nouns), [f"noun {i}" for i in range(11_000)])
    assert all(entry["nouns"] for entry in names)
    assert len({entry["name"] for entry in names}) == 10_000
