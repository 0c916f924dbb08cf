"""Two views of a picture for fine-tuning: the weak one is the encoder's own preprocessing, the strong one is drawn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import (
    ColorJitter,
    Compose,
    InterpolationMode,
    RandomApply,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
)


def strong_view(size: tuple[int, int]) -> Callable[[Image.Image], Image.Image]:
    """SEIC's: crop of 0.5 to 1 of the area, flip, color jitter (0.32, 0.32, 0.32, 0.08) at 0.8, grey at 0.2. `size`: height, width.

    Draws from torch's global generator.
    """
    jitter = ColorJitter(0.32, 0.32, 0.32, 0.08)
    steps = [
        RandomResizedCrop(size, scale=(0.5, 1.0), interpolation=InterpolationMode.BICUBIC),
        RandomHorizontalFlip(),
        RandomApply([jitter], p=0.8),
        RandomGrayscale(0.2),
    ]
    draw: Callable[[Image.Image], Image.Image] = Compose(steps)
    return draw


def two_views(
    image: Image.Image,
    weak: Callable[[Image.Image], np.ndarray],
    strong: Callable[[Image.Image], Image.Image],
    seed: int,
) -> np.ndarray:
    """uint8 [2, height, width, 3]: weak, strong. The same `seed` draws the same strong view, wherever it runs."""
    with torch.random.fork_rng(devices=[]):
        # Of torch.manual_seed every call without a GPU would leave a record behind, for the day that there is one.
        torch.default_generator.manual_seed(seed)
        drawn = np.asarray(strong(image), np.uint8)
    return np.stack([weak(image), drawn])
