"""The embed stage: stream pictures from storage through a pool of encoder actors into Parquet.

With GPUs, separate tasks decode the pictures before the actors encode them. Without GPUs, the actors also read and decode.

The stage resumes without bookkeeping: rows that lie in a part file are done, and all other rows are streamed again. A part is
written whole or not at all, and its rows determine its name, so neither a kill nor a repeated task stores a row twice.
(Ray's CheckpointConfig is not used: it needs a plan that ends in Ray's own write, keeps a second table of ids, and
does not survive added rows.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, TaskPoolStrategy
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from raycluster.compute.node_checks import ALONE, Common, check_here, checked
from raycluster.compute.resources import WRITER_CPUS, Resources, own_device
from raycluster.compute.streaming import streaming
from raycluster.config import EncoderConfig, StorageConfig
from raycluster.encoder.clip import ClipEncoder, EncoderSpec, pil_transform
from raycluster.encoder.write import write_rows
from raycluster.images.decode import decode_batch
from raycluster.images.fetch import Fetched
from raycluster.images.pictures import COLUMNS, fetched_slices
from raycluster.storage.location import Location
from raycluster.tables.blocks import Block, find_blocks
from raycluster.tables.rows import binary_rows, vector_column
from raycluster.tables.schemas import embeddings_schema

BLOCK_ROWS, GPU_BLOCK_ROWS = 128, 512
"""Most images in a block, on CPUs and on GPUs: some seconds of an encoder's work. Ray schedules whole blocks, and a kill loses them."""
SMALLEST_BLOCK = 16
BLOCKS_AN_ACTOR, FEWEST_BLOCKS, MOST_BLOCKS = 1000, 2000, 8000
"""Blocks of one round: so many for each actor, within these bounds. Ray Data plans all tasks of a round at once, and for each round the
actors start anew, which takes them half a minute; a round takes them several."""


@dataclass(frozen=True)
class EmbedJob:
    """Facts that every task of the stage needs. The object is small, because Ray sends it with each task."""

    spec: EncoderSpec
    limits: EncoderConfig
    storage: StorageConfig
    folder: Location


class BlockRows(Datasource):
    """A Ray Data source that gives the rows of a manifest or of shards, block by block."""

    def __init__(self, blocks: list[Block], common: Common) -> None:
        super().__init__()
        self.blocks, self.common = blocks, common

    def estimate_inmemory_data_size(self) -> int:
        """Return the bytes of all rows, counting only ids and URIs: the task that reads a block also decodes it."""
        return 200 * sum(len(block) for block in self.blocks)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return one task a block, whatever parallelism Ray would prefer."""
        read = checked(lambda block: [block.read(COLUMNS)], self.common)
        return [
            ReadTask(
                partial(read, block),
                BlockMetadata(num_rows=len(block), size_bytes=200 * len(block), input_files=None, exec_stats=None),
            )
            for block in self.blocks
        ]


def decode_rows(block: pa.Table, job: EmbedJob) -> pa.Table:
    """Fetch and decode a block's pictures; return row_id, image_id, status, error, width, height, content, pixels (uint8 at model size)."""
    return pa.concat_tables(
        _decoded(rows, found, job) for rows, found in fetched_slices(block, job.storage, job.limits.max_bytes)
    )


def _decoded(block: pa.Table, fetched: list[Fetched], job: EmbedJob) -> pa.Table:
    side = min(job.spec.image_size)
    decoded = decode_batch(fetched, pil_transform(job.spec), job.limits.max_pixels, min_side=side)
    bytes_each = int(np.prod(job.spec.pixel_shape))
    return pa.table(
        {
            "row_id": block.column("row_id"),
            "image_id": block.column("image_id"),
            "status": pa.array(decoded.status, pa.string()),
            "error": pa.array(decoded.error, pa.string()),
            "width": _of_original(block, "width", decoded.width),
            "height": _of_original(block, "height", decoded.height),
            "content": _content(block, fetched),
            "pixels": pa.array(decoded.pixels, pa.binary(bytes_each)),
        }
    )


def _of_original(block: pa.Table, name: str, seen: list[int | None]) -> pa.Array:
    """Return a size of the originals: the column of a shard, where the stored picture is smaller, else the size seen in decoding."""
    known = block.column(name).to_pylist() if name in block.column_names else seen
    return pa.array([None if here is None else size for here, size in zip(seen, known, strict=True)], pa.int32())


def _content(block: pa.Table, fetched: list[Fetched]) -> pa.Array:
    """Return the hashes of the originals: the column of a shard, which holds another file, else those of the bytes just read."""
    if "content" in block.column_names:
        return block.column("content")
    stored = "image" in block.column_names  # a shard of an earlier version, without this column
    return pa.array([None if stored else item.content for item in fetched], pa.binary(16))


class EncodeRows:
    """An actor that holds the encoder and turns the pixels of a block into embeddings."""

    def __init__(self, job: EmbedJob, threads: int, compile: bool = False, common: Common = ALONE) -> None:
        """`threads`: number of torch threads when the device is the CPU. `compile`: see :meth:`ClipEncoder.load`."""
        device = own_device()
        if device == "cpu":
            torch.set_num_threads(threads)
        self.encoder = ClipEncoder.load(job.spec, device, compile)
        self.spec, self.common = job.spec, common

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the rows with `embedding` in place of `pixels`; it is null where the status is not `ok`."""
        check_here(self.common)
        ok = pc.equal(block.column("status"), "ok")
        images = binary_rows(block.column("pixels").filter(ok), self.spec.pixel_shape)
        schema = embeddings_schema(self.spec.dim)
        column = pa.nulls(len(block), schema.field("embedding").type)
        if len(images):
            vectors = self.encoder.encode_pixels(images)
            # Row i of the result is the next embedding if its status is ok, else null.
            position = pa.array(np.cumsum(ok.to_numpy()) - 1, mask=~ok.to_numpy())
            column = vector_column(vectors).take(position)
        return block.drop_columns(["pixels"]).append_column("embedding", column).cast(schema)


def rounds(wanted: np.ndarray, resources: Resources) -> list[np.ndarray]:
    """Return the ids `wanted` (ascending) in parts that are embedded one after the other."""
    blocks = min(MOST_BLOCKS, max(FEWEST_BLOCKS, BLOCKS_AN_ACTOR * resources.encoder_actors))
    size = blocks * _block_rows(resources)
    return [wanted[start : start + size] for start in range(0, len(wanted), size)]


def _block_rows(resources: Resources) -> int:
    return GPU_BLOCK_ROWS if resources.use_gpu else BLOCK_ROWS


def embed(job: EmbedJob, files: list[Location], wanted: np.ndarray, resources: Resources) -> Iterable[pa.Table]:
    """Embed the rows of a manifest or of shards that have their id in `wanted` (ascending); yield status counts as parts are written."""
    actors = resources.encoder_actors
    # With few images the blocks are smaller, so that every actor gets some and no actor works alone at the end.
    blocks = find_blocks(files, wanted, _block_rows(resources), fair=4 * actors, multiple=SMALLEST_BLOCK)
    if not blocks:
        return
    # Decode tasks may be faster than the GPUs. Without a limit they would fill the object store with pixels.
    block_bytes = int(np.prod(job.spec.pixel_shape)) * max(map(len, blocks))
    with streaming(max(2**27, 6 * actors * block_bytes)):
        # The caller wants each count as soon as its part is written. With prefetching, each count would come one part late.
        yield from embedding(job, blocks, resources).iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        )


def embedding(job: EmbedJob, blocks: list[Block], resources: Resources) -> ray.data.Dataset:
    """Return the plan: read and decode, encode, write. Its rows are the status counts of parts."""
    rows = ray.data.read_datasource(
        BlockRows(blocks, resources.common), override_num_blocks=len(blocks), num_cpus=resources.decode_cpus
    ).map_batches(
        decode_rows, fn_kwargs={"job": job}, batch_size=None, batch_format="pyarrow", num_cpus=resources.decode_cpus
    )
    # Ray prints an `[E] core_worker` line: a restart of these actors will fail if their constructor arguments get lost. They cannot get
    # lost: the arguments are Ray Data's context and the plan's functions, and Ray Data keeps both while the stage runs.
    # tests/torture/test_kills.py kills encoders to check this.
    encoded = rows.map_batches(
        EncodeRows,
        fn_constructor_args=(
            job,
            resources.threads(resources.encoder_actors),
            resources.compile_encoder,
            resources.common,
        ),
        # An actor has several calls at a time. Ray lets one of them encode, while the others wait for storage or decode.
        compute=ActorPoolStrategy(
            size=resources.encoder_actors, max_concurrent_calls_per_actor=resources.encoder_calls
        ),
        # Ray Data needs a number here when an operator reserves GPUs. The size of the largest block makes each block one call.
        batch_size=max(map(len, blocks)) if resources.use_gpu else None,
        batch_format="pyarrow",
        **resources.encoder_actor,
    )
    return encoded.map_batches(
        checked(write_rows, resources.common),
        fn_kwargs={"folder": job.folder},
        # A few writers are enough, because each has little to do.
        compute=TaskPoolStrategy(size=max(1, resources.encoder_actors // 4)),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=WRITER_CPUS,
    )
