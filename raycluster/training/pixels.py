"""Pictures for fine-tuning: Ray Data streams both views of a worker's rows, in the order of training.

A worker runs a stream of its own. Ray's `streaming_split` deals blocks to whichever worker asks first, so batches would differ from run
to run; here row, order and views follow from (seed, epoch, row id), and a resumed training goes on in the middle of an epoch.
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

from raycluster.config import EncoderConfig, StorageConfig
from raycluster.distributed import streaming
from raycluster.encoder.clip import EncoderSpec, pil_transform
from raycluster.images.decode import decode_batch
from raycluster.images.pictures import fetched_slices
from raycluster.images.views import strong_view, two_views
from raycluster.node_checks import ALONE, Common, checked
from raycluster.resources import PixelCpus
from raycluster.rows import binary_rows
from raycluster.shards import GroupReader, group_ids
from raycluster.training.counted import epoch_order, grouped_order, integers, lane_count
from raycluster.training.self_enhancement import Views

BLOCK_ROWS = 128
BLOCK_BYTES = 2**26
"""Most rows and bytes of a block, the work of one decode task."""
OPEN_GROUPS = 80
"""Row groups of shards that a worker keeps, of which :func:`grouped_order` needs about 50 at a time: 300 MB at the default size for 224 pixels."""
BLOCKS_AHEAD = 2000
"""Blocks that Ray plans at once: of a long training it would hold all."""
VIEW_STREAM = 8
"""Stream of the draws behind the strong views (:mod:`raycluster.training.counted`)."""


@dataclass(frozen=True)
class PixelJob:
    """What every decode task needs to know, and how rows make batches."""

    spec: EncoderSpec
    limits: EncoderConfig
    storage: StorageConfig
    seed: int
    n_rows: int
    batch_size: int
    """Rows of the global batch; an epoch's last, incomplete batch is dropped."""

    @property
    def steps_per_epoch(self) -> int:
        """Complete batches of an epoch."""
        return self.n_rows // self.batch_size

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return max(1, min(BLOCK_ROWS, BLOCK_BYTES // int(2 * np.prod(self.spec.pixel_shape))))


def batches(
    job: PixelJob, images: ray.ObjectRef, steps: range, rank: int, world: int, cpus: PixelCpus, common: Common = ALONE
) -> Iterator[Views]:
    """This worker's share of the batches of these steps, counted from the first step of the first epoch.

    `images`: Arrow table of the training rows, ascending: row_id, and uri and size, or uri, group and place in shards
    (:func:`raycluster.shards.find_rows`); `cpus`: what this worker's reading and decoding reserves;
    `common`: what the nodes must have on which it is done.
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
    """The rows of shards, in the same blocks, with their pictures."""
    # A worker that takes every second row of a batch reads every second lane.
    apart = math.gcd(lane_count(len(np.unique(groups))), world) if job.batch_size % world == 0 else 1
    return rows.map_batches(
        GroupReader,
        fn_constructor_args=(job.storage, OPEN_GROUPS // apart),
        compute=ActorPoolStrategy(size=1),
        batch_size=None,
        batch_format="pyarrow",
        # Another demand than that of the tasks around it, or Ray would fuse them, and the actor would import torch.
        num_cpus=cpus,
    )


def _shares(
    job: PixelJob, groups: np.ndarray | None, steps: range, rank: int, world: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each step the positions of this worker's rows, and their epoch."""
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
    """A sequence of training rows, in blocks."""

    def __init__(self, job: PixelJob, images: ray.ObjectRef, positions: np.ndarray, epochs: np.ndarray) -> None:
        super().__init__()
        self.job, self.images = job, images
        starts = range(0, len(positions), job.block_rows)
        self.blocks = [(positions[s : s + job.block_rows], epochs[s : s + job.block_rows]) for s in starts]

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all blocks."""
        return self._size(sum(len(positions) for positions, _ in self.blocks))

    def _size(self, rows: int) -> int:
        return rows * 2 * int(np.prod(self.job.spec.pixel_shape))

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task a block, whatever parallelism Ray would prefer."""
        seed, images = self.job.seed, self.images
        return [
            ReadTask(
                lambda positions=positions, epochs=epochs: [training_rows(ray.get(images), positions, epochs, seed)],
                BlockMetadata(len(positions), self._size(len(positions)), input_files=None, exec_stats=None),
            )
            for positions, epochs in self.blocks
        ]


def training_rows(images: pa.Table, positions: np.ndarray, epochs: np.ndarray, seed: int) -> pa.Table:
    """The rows at these positions, with `draw`, the seed of each one's strong view in its epoch."""
    rows = images.take(pa.array(positions))
    draws = np.empty(len(rows), np.int64)
    ids = torch.from_numpy(rows.column("row_id").to_numpy().copy())
    for epoch in np.unique(epochs):
        at = epochs == epoch
        draws[at] = integers(seed, int(epoch), ids[torch.from_numpy(at)], VIEW_STREAM, 2**31).numpy()
    # As plain text: a dictionary would bring the names of all shards along.
    uri = rows.column("uri").cast(pa.string())
    return rows.set_column(rows.column_names.index("uri"), "uri", uri).append_column("draw", pa.array(draws))


def view_rows(rows: pa.Table, job: PixelJob) -> pa.Table:
    """Both views of each picture, as drawn: columns status, views (uint8 [2, height, width, 3])."""
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
    # Copied once: Ray's memory is read-only, which torch must not alias.
    pixels = torch.from_numpy(binary_rows(block.column("views"), (2, *job.spec.pixel_shape)).copy())
    readable = torch.tensor([status == "ok" for status in block.column("status").to_pylist()])
    return Views(pixels[:, 0], pixels[:, 1], readable, job.batch_size)
