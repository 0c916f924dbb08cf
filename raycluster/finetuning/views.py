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
    """Return SEIC's strong augmentation. `size`: height, width.

    It crops 0.5 to 1 of the area, flips, and applies color jitter (0.32, 0.32, 0.32, 0.08) with probability 0.8 and grey with 0.2. It draws
    from torch's global generator.
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
    """Return the weak and the strong view, uint8 [2, height, width, 3]. The same `seed` draws the same strong view in every process."""
    with torch.random.fork_rng(devices=[]):
        # Without a GPU, every call of torch.manual_seed would leave a record for the time when CUDA is initialized.
        torch.default_generator.manual_seed(seed)
        drawn = np.asarray(strong(image), np.uint8)
    return np.stack([weak(image), drawn])
