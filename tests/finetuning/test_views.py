"""Test the weak and strong views of a picture."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from raycluster.finetuning.views import strong_view, two_views


def picture() -> Image.Image:
    draw = np.random.default_rng(0)
    return Image.fromarray(draw.integers(0, 256, (40, 60, 3), np.uint8)).resize((120, 80))


def weak(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((24, 32)), np.uint8)


def test_the_seed_decides_and_the_global_state_stays() -> None:
    strong, before = strong_view((32, 24)), torch.random.get_rng_state()
    one, again, other = (two_views(picture(), weak, strong, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.shape == (2, 32, 24, 3)
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[0], weak(picture()))
    assert (one[1] != other[1]).mean() > 0.5


def test_views_are_drawn_as_often_as_published() -> None:
    left_to_right = np.zeros((64, 64, 3), np.uint8)
    left_to_right[:, 32:] = (200, 60, 60)
    image, strong = Image.fromarray(left_to_right), strong_view((16, 16))
    views = [two_views(image, lambda x: np.asarray(x.resize((16, 16))), strong, seed)[1] for seed in range(400)]
    flipped = np.mean([view[:, 0].sum() > view[:, -1].sum() for view in views])
    grey = np.mean([np.ptp(view.astype(int), axis=2).max() == 0 for view in views])
    corners = [np.maximum(view[8, 0], view[8, -1]).astype(int) for view in views]
    plain = np.mean([np.abs(corner - [200, 60, 60]).max() <= 2 for corner in corners])
    assert 0.4 < flipped < 0.6
    assert 0.13 < grey < 0.27
    # A view has no jitter with probability 0.2, and is not gray with probability 0.8.
    assert 0.1 < plain < 0.23
