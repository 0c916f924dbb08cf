"""Test which nouns are kept and how text counterparts are made, against the authors' values and against plain sums."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from raycluster.clustering.cells import make_cells
from raycluster.semantics.pairing import (
    TACSpace,
    near_counterparts,
    nouns_of_centers,
    semantic_center_count,
    text_counterparts,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "tac_filter_retrieve_N90_K12_M200.npz"


def test_nouns_and_counterparts_are_the_authors() -> None:
    with np.load(GOLDEN, allow_pickle=False) as g:
        # numpy normalizes the rows, as in the authors' code, because τ̃ = 0.005 amplifies the last bit of the input 200 times.
        raw = (g[key].astype(np.float32) for key in ("images", "nouns"))
        images, nouns = (torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)) for rows in raw)
        kept = nouns_of_centers(torch.from_numpy(g["fp32_centers"]).float(), nouns, 5)
        assert kept.tolist() == g["fp32_selected_indices"].tolist()
        counterparts = text_counterparts(images, nouns[kept], 0.005)
        # The authors' values are float32 numbers from one CPU. The last bit of a cosine, 6e-8, changes a noun's weight by a
        # share of 1.2e-5, and the values are 1.6e-6 off what exact arithmetic gives. Exact arithmetic is the same on every CPU,
        # but the rounding of float32 is not.
        exact = text_counterparts(images.double(), nouns[kept].double(), 0.005)
        torch.testing.assert_close(exact, torch.from_numpy(g["fp32_text_counterpart"]).double(), rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(counterparts.double(), exact, rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize(
    ("n_images", "n_clusters", "centers"),
    [
        (50_000, 10, 167),
        (5_000, 10, 17),
        (13_000, 10, 43),
        (19_500, 15, 65),
        (3_760, 47, 141),
        (9_537, 101, 303),
        (1_281_167, 1000, 4271),
    ],
)
def test_number_of_centers_gives_the_published_constants(n_images: int, n_clusters: int, centers: int) -> None:
    assert semantic_center_count(n_images, n_clusters) == centers


def test_there_are_never_more_centers_than_images() -> None:
    assert semantic_center_count(20, 10) == 20


def test_every_center_keeps_its_most_probable_nouns() -> None:
    generator = torch.Generator().manual_seed(0)
    centers, nouns = (normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (4, 50))
    probability = (nouns @ centers.T).softmax(dim=1)
    expected = set()
    for center in range(4):
        mine = [m for m in range(50) if int(probability[m].argmax()) == center]
        expected |= set(sorted(mine, key=lambda m: -float(probability[m, center]))[:5])
    assert nouns_of_centers(centers, nouns, 5).tolist() == sorted(expected)


def test_selection_is_deterministic_and_counterparts_have_unit_norm() -> None:
    generator = torch.Generator().manual_seed(1)
    images, nouns = (normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (90, 40))
    space = TACSpace(nouns_per_center=2)
    kept = space.select(images, nouns, 2, seed=3)
    assert torch.equal(kept, space.select(7 * images.half(), nouns, 2, seed=3))
    assert len(kept) <= 12  # two nouns for each of three centers a cluster
    norms = space.pair(images.half(), nouns[kept]).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(90))


def test_counterparts_are_the_plain_weighted_means() -> None:
    generator = torch.Generator().manual_seed(2)
    images, kept = (normalize(torch.randn(n, 6, generator=generator, dtype=torch.float64), dim=1) for n in (9, 7))
    found = text_counterparts(images, kept, temperature=0.3)
    for image, counterpart in zip(images, found, strict=True):
        weights = [math.exp(float(image @ noun) / 0.3) for noun in kept]
        mean = sum((w * noun for w, noun in zip(weights, kept, strict=True)), torch.zeros(6, dtype=torch.float64))
        torch.testing.assert_close(counterpart, mean / mean.norm(), rtol=1e-10, atol=1e-12)


def test_chunks_change_neither_nouns_nor_counterparts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    images, nouns, centers = (normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (50, 70, 6))
    kept = nouns_of_centers(centers, nouns, 5)
    whole = text_counterparts(images, nouns[kept], 0.005)
    monkeypatch.setattr("raycluster.semantics.pairing.CHUNK_BYTES", 4 * 6 * 11)
    assert torch.equal(nouns_of_centers(centers, nouns, 5), kept)
    torch.testing.assert_close(text_counterparts(images, nouns[kept], 0.005), whole)


def test_a_center_without_nouns_keeps_none_and_few_nouns_are_all_kept() -> None:
    centers = torch.eye(3)
    nouns = normalize(torch.tensor([[1.0, 0.1, 0.0], [0.1, 1.0, 0.0], [1.0, 0.3, 0.0]]), dim=1)
    assert nouns_of_centers(centers, nouns, 5).tolist() == [0, 1, 2]
    assert nouns_of_centers(centers, nouns, 1).tolist() == [0, 1]


def test_nouns_near_the_cell_make_nearly_the_same_counterparts() -> None:
    generator = torch.Generator().manual_seed(0)
    nouns = normalize(torch.randn(400, 16, generator=generator), dim=1)
    images = normalize(nouns[:30].repeat(20, 1) + 0.1 * torch.randn(600, 16, generator=generator), dim=1)
    cells = make_cells(images, seed=0, count=30)
    whole = text_counterparts(images, nouns, 0.03)
    assert torch.equal(near_counterparts(images, nouns, 0.03, cells, 400), whole)
    near = near_counterparts(images, nouns, 0.03, cells, 40)
    torch.testing.assert_close(near.norm(dim=1), torch.ones(600))
    assert (near * whole).sum(dim=1).min() > 0.99
