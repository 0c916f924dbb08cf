"""Pictures for fine-tuning: Ray Data streams both views of a worker's rows, in the order of training.

Each worker runs its own stream. Ray's `streaming_split` deals blocks to whichever worker asks first, so batches would differ from run
to run. Here rows, order and views follow from (seed, epoch, row id), so a training can resume in the middle of an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from raycluster.compute.node_checks import ALONE, Common, checked
from raycluster.compute.resources import PixelCpus
from raycluster.compute.streaming import streaming
from raycluster.config import EncoderConfig, StorageConfig
from raycluster.encoder.clip import EncoderSpec, pil_transform
from raycluster.finetuning.self_enhancement import Views
from raycluster.finetuning.views import strong_view, two_views
from raycluster.images.decode import decode_batch
from raycluster.images.pictures import fetched_slices
from raycluster.images.shards import GroupReader, group_ids
from raycluster.randomness import epoch_order, grouped_order, integers, lane_count
from raycluster.tables.rows import binary_rows

BLOCK_ROWS = 128
BLOCK_BYTES = 2**26
"""Most bytes of a block, which has at most BLOCK_ROWS rows. One decode task makes one block."""
OPEN_GROUPS = 80
"""Row groups of shards that a worker keeps in memory: 300 MB at the default size for encoders of 224 pixels.

:func:`grouped_order` needs about 50 of them at a time.
"""
BLOCKS_AHEAD = 2000
"""Most blocks that Ray plans at once. Without this limit, it would hold the plan for all blocks of a long training."""
VIEW_STREAM = 8
"""Stream of the draws behind the strong views (:mod:`raycluster.randomness`)."""


@dataclass(frozen=True)
class PixelJob:
    """What every decode task needs to know, and how rows make batches."""

    spec: EncoderSpec
    limits: EncoderConfig
    storage: StorageConfig
    seed: int
    n_rows: int
    batch_size: int
    """Rows of the global batch. An epoch's last, incomplete batch is dropped."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of complete batches of an epoch."""
        return self.n_rows // self.batch_size

    @property
    def block_rows(self) -> int:
        """Number of rows of a block."""
        return max(1, min(BLOCK_ROWS, BLOCK_BYTES // int(2 * np.prod(self.spec.pixel_shape))))


def batches(
    job: PixelJob, images: ray.ObjectRef, steps: range, rank: int, world: int, cpus: PixelCpus, common: Common = ALONE
) -> Iterator[Views]:
    """Yield this worker's share of the batches of these steps. Steps are counted from the first step of the first epoch.

    `images`: Arrow table of the training rows, ascending. Its columns are row_id, uri and size, or in shards row_id, uri, group and place
    (:func:`raycluster.images.shards.find_rows`). `cpus`: CPUs that this worker's reading and decoding reserves. `common`: what the nodes
    that read and decode must have.
    """
    share = len(range(rank, job.batch_size, world))
    ahead = max(1, BLOCKS_AHEAD * job.block_rows // share)
    table = ray.get(images)
    groups = group_ids(table) if "group" in table.column_names else None
    for start in range(steps.start, steps.stop, ahead):
        parts = list(_shares(job, groups, range(start, min(start + ahead, steps.stop)), rank, world))
        rows = _Rows(job, images, np.concatenate([p for p, _ in parts]), np.concatenate([e for _, e in parts]))
        in_flight = 4 * max(1, int(cpus.stream)) * job.block_rows + 2 * share
        memory = max(2**27, 2 * in_flight * int(np.prod(job.spec.pixel_shape)))
        with streaming(memory, cpus=cpus.stream, ordered=True):
            stream = ray.data.read_datasource(rows, override_num_blocks=len(rows.blocks), num_cpus=cpus.decode)
            if groups is not None:
                stream = _with_pictures(stream, groups, job, world, cpus.reader)
            stream = stream.map_batches(
                checked(view_rows, common),
                fn_kwargs={"job": job},
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=cpus.decode,
            )
            for block in stream.iter_batches(batch_size=share, batch_format="pyarrow", prefetch_batches=2):
                yield _views(block, job)


def _with_pictures(
    rows: ray.data.Dataset, groups: np.ndarray, job: PixelJob, world: int, cpus: float
) -> ray.data.Dataset:
    """Return the rows with their pictures from shards, in the same blocks."""
    # Rows come from the lanes in turn. A worker that takes every second row therefore reads every second lane, and needs half the groups.
    apart = math.gcd(lane_count(len(np.unique(groups))), world) if job.batch_size % world == 0 else 1
    return rows.map_batches(
        GroupReader,
        fn_constructor_args=(job.storage, OPEN_GROUPS // apart),
        compute=ActorPoolStrategy(size=1),
        batch_size=None,
        batch_format="pyarrow",
        # This demand must differ from that of the tasks around it. Otherwise Ray would fuse them, and the actor would import torch.
        num_cpus=cpus,
    )


def _shares(
    job: PixelJob, groups: np.ndarray | None, steps: range, rank: int, world: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each step the positions of this worker's rows, and the epoch of each row."""
    order, of = np.empty(0, np.int64), -1
    for step in steps:
        epoch, index = divmod(step, job.steps_per_epoch)
        if epoch != of:
            visit = (
                epoch_order(job.n_rows, job.seed, epoch) if groups is None else grouped_order(groups, job.seed, epoch)
            )
            order, of = visit.numpy(), epoch
        share = order[index * job.batch_size : (index + 1) * job.batch_size][rank::world]
        yield share, np.full(len(share), epoch)


class _Rows(Datasource):
    """A Ray datasource of a sequence of training rows, in blocks."""

    def __init__(self, job: PixelJob, images: ray.ObjectRef, positions: np.ndarray, epochs: np.ndarray) -> None:
        super().__init__()
        self.job, self.images = job, images
        starts = range(0, len(positions), job.block_rows)
        self.blocks = [(positions[s : s + job.block_rows], epochs[s : s + job.block_rows]) for s in starts]

    def estimate_inmemory_data_size(self) -> int:
        """Return the bytes of all blocks."""
        return self._size(sum(len(positions) for positions, _ in self.blocks))

    def _size(self, rows: int) -> int:
        return rows * 2 * int(np.prod(self.job.spec.pixel_shape))

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return one task for each block, whatever parallelism Ray asks for."""
        seed, images = self.job.seed, self.images
        return [
            ReadTask(
                lambda positions=positions, epochs=epochs: [training_rows(ray.get(images), positions, epochs, seed)],
                BlockMetadata(len(positions), self._size(len(positions)), input_files=None, exec_stats=None),
            )
            for positions, epochs in self.blocks
        ]


def training_rows(images: pa.Table, positions: np.ndarray, epochs: np.ndarray, seed: int) -> pa.Table:
    """Return the rows at these positions, with a column `draw`: the seed of each row's strong view in its epoch."""
    rows = images.take(pa.array(positions))
    draws = np.empty(len(rows), np.int64)
    ids = torch.from_numpy(rows.column("row_id").to_numpy().copy())
    for epoch in np.unique(epochs):
        at = epochs == epoch
        draws[at] = integers(seed, int(epoch), ids[torch.from_numpy(at)], VIEW_STREAM, 2**31).numpy()
    # Cast to plain text: a dictionary array would carry the names of all shards along.
    uri = rows.column("uri").cast(pa.string())
    return rows.set_column(rows.column_names.index("uri"), "uri", uri).append_column("draw", pa.array(draws))


def view_rows(rows: pa.Table, job: PixelJob) -> pa.Table:
    """Return columns status and views (uint8 [2, height, width, 3]): both views of each picture. `draw` is the seed of the strong view."""
    weak, strong = pil_transform(job.spec), strong_view(job.spec.image_size)
    decoded = [
        decode_batch(
            [item],
            partial(two_views, weak=weak, strong=strong, seed=draw),
            job.limits.max_pixels,
            min_side=min(job.spec.image_size),
        )
        for part, fetched in fetched_slices(rows, job.storage, job.limits.max_bytes)
        for item, draw in zip(fetched, part.column("draw").to_pylist(), strict=True)
    ]
    size = 2 * int(np.prod(job.spec.pixel_shape))
    return pa.table(
        {
            "status": pa.array([row.status[0] for row in decoded], pa.string()),
            "views": pa.array([row.pixels[0] for row in decoded], pa.binary(size)),
        }
    )


def _views(block: pa.Table, job: PixelJob) -> Views:
    # Copy once, because Ray's memory is read-only and torch must not alias it.
    pixels = torch.from_numpy(binary_rows(block.column("views"), (2, *job.spec.pixel_shape)).copy())
    readable = torch.tensor([status == "ok" for status in block.column("status").to_pylist()])
    return Views(pixels[:, 0], pixels[:, 1], readable, job.batch_size)
