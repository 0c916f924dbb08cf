"""Run a vision tower over many pictures, batch by batch, so that a GPU never waits for the next batch.

Each batch is copied into pinned memory and from there to the GPU. The second copy uses a stream of its own and runs while the GPU
computes the batch before it. Results are copied back without blocking the host, which waits for all of them once, at the end. On a
CPU the same code runs, and the streams do nothing. This module does not depend on CLIP.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from raycluster.errors import RayclusterError

Forward = Callable[[Tensor], Tensor]
"""A function from uint8 [B, height, width, 3] on the device to float16 [B, d] on the device."""

CPU_ROWS = 32
"""Rows of a batch on a CPU."""
MOST_ROWS = 1024
"""Most rows of a batch on a GPU. No GPU has measured yet whether larger batches are faster."""
FEWEST_ROWS = 64
"""Fewest rows of a batch on a GPU, if the call has so many: smaller batches leave a part of the GPU idle."""
BATCHES_A_CALL = 4
"""Fewest batches of a call on a GPU, unless it has few rows. The GPU is idle while the first batch is copied, so it must be small."""
AHEAD = 2
"""Most batches that are copied or computed at the same time. It bounds the memory that many pictures take on the device."""
PROBE_ROWS = 16
"""Rows of the batch that measures how much memory a row takes."""
MEMORY_SHARE = 0.25
"""Share of the free memory of a GPU that a batch may take: several actors may share the GPU, and memory is fragmented."""


class Feeder:
    """A forward pass that takes any number of pictures from host memory."""

    def __init__(self, forward: Forward, pixel_shape: tuple[int, int, int], dim: int, device: str) -> None:
        self._forward, self._pixel_shape, self._dim = forward, pixel_shape, dim
        self._device = torch.device(device)
        self._pinned = self._device.type == "cuda"
        self._runtime = torch.get_device_module(self._device)
        self._copies = self._runtime.Stream()

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Encode uint8 [n, height, width, 3] in host memory, which may be read-only, to float16 [n, d].

        Raises :class:`RayclusterError` if the GPU has too little memory.
        """
        result = torch.empty(len(pixels), self._dim, dtype=torch.float16, pin_memory=self._pinned)
        running: deque[tuple[torch.Event, Tensor, Tensor]] = deque()
        with out_of_memory_explained():
            rows = self.batch_rows(len(pixels))
            for start in range(0, len(pixels), rows):
                if len(running) == AHEAD:
                    # Once the oldest batch is done, other batches can use the memory of its buffers.
                    running.popleft()[0].synchronize()
                staged, batch = self._copied(pixels[start : start + rows])
                result[start : start + rows].copy_(self._forward(batch), non_blocking=True)
                done = self._runtime.Event()
                done.record()
                running.append((done, staged, batch))
            self._runtime.synchronize()
        return result.numpy()

    def _copied(self, pixels: np.ndarray) -> tuple[Tensor, Tensor]:
        """Copy the rows into pinned memory and to the device. On a CPU both are one copy, which is writable even if `pixels` is not."""
        staged = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=self._pinned)
        staged.numpy()[:] = pixels
        with self._runtime.stream(self._copies):
            batch = staged.to(self._device, non_blocking=True)
        self._runtime.current_stream().wait_stream(self._copies)
        return staged, batch

    def batch_rows(self, n: int) -> int:
        """Return the rows of a batch when `n` pictures are encoded in one call."""
        if self._device.type == "cpu":
            return CPU_ROWS
        return gpu_batch_rows(n, self._rows_that_fit)

    @cached_property
    def _rows_that_fit(self) -> int:
        """The rows that fit into :data:`MEMORY_SHARE` of the free memory of the GPU, estimated from the memory that a small batch takes."""
        probe = torch.zeros(PROBE_ROWS, *self._pixel_shape, dtype=torch.uint8, device=self._device)
        # The first call also allocates workspaces. They stay and do not grow with the batch, so the second call is measured.
        self._forward(probe)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self._forward(probe)
        row = (torch.cuda.max_memory_allocated() - before) / PROBE_ROWS + math.prod(self._pixel_shape)
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        free = torch.cuda.mem_get_info()[0] + unused
        return max(1, min(MOST_ROWS, int(MEMORY_SHARE * free / row)))


def compiled(forward: Forward) -> Forward:
    """Return the same forward pass; its first call compiles it for batches of any size."""
    compiled_forward = torch.compile(forward)

    def run(batch: Tensor) -> Tensor:
        # Only the number of rows varies. With `dynamic=True` torch would also reason about all heights and widths, sometimes for minutes.
        torch._dynamo.maybe_mark_dynamic(batch, 0)
        return compiled_forward(batch)

    return run


def gpu_batch_rows(n: int, fit: int) -> int:
    """Return the rows of a batch if a call has `n` rows and `fit` fit into memory. Batches are equal, so none is small."""
    batches = max(min(BATCHES_A_CALL, n // FEWEST_ROWS), math.ceil(n / fit), 1)
    return max(1, math.ceil(n / batches))


@contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Turn torch's out-of-memory error into a :class:`RayclusterError` that names the remedy."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RayclusterError(
            f"encoder: out of GPU memory ({str(error).split('.')[0]}); lower `resources.encoder_actors` if actors share a GPU, end other "
            "programs on it, or choose a smaller `encoder.model` or `encoder.precision: bf16`"
        ) from None
