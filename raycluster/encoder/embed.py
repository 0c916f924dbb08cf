"""The embed stage: stream pictures from storage through decode tasks and a pool of encoder actors into Parquet.

It resumes without bookkeeping: rows that lie in a part file are done, everything else is streamed again. A part is
written whole or not at all, under a name that its rows determine, so neither a kill nor a repeated task doubles a row.
(Ray's CheckpointConfig is not used: it needs a plan that ends in Ray's own write, keeps a second table of ids, and
does not survive added rows.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from raycluster.config import EncoderConfig, StorageConfig
from raycluster.distributed import Resources, streaming
from raycluster.encoder.clip import ClipEncoder, EncoderSpec, pil_transform
from raycluster.images import credentials
from raycluster.images.decode import decode_batch
from raycluster.images.fetch import fetch_batch, retry
from raycluster.rows import binary_rows, vector_column
from raycluster.run_folder import part_name
from raycluster.storage import Location
from raycluster.tables import embeddings_schema

BLOCK_ROWS = {"cpu": 128, "cuda": 512}
"""Most images in a block, the unit of scheduling and of loss at a kill: some seconds of work for one actor."""
SMALLEST_BLOCK = 16


@dataclass(frozen=True)
class EmbedJob:
    """What every task of the stage needs to know; small, so it travels with each."""

    spec: EncoderSpec
    limits: EncoderConfig
    storage: StorageConfig
    folder: Location


class ManifestRows(Datasource):
    """The manifest's rows that are not embedded yet, in blocks, by position in its files."""

    def __init__(self, files: list[Location], done: np.ndarray, largest_block: int, actors: int) -> None:
        super().__init__()
        groups = list(_open_rows(files, np.sort(done)))
        # Few images: smaller blocks, so that every actor gets some and the last one does not work alone.
        fair = -(-sum(len(rows) for *_, rows in groups) // (4 * actors))
        size = max(SMALLEST_BLOCK, min(largest_block, fair))
        self.blocks = [
            (file, group, rows[start : start + size])
            for file, group, rows in groups
            for start in range(0, len(rows), size)
        ]

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all rows; a row is an id and a URI."""
        return 200 * sum(len(wanted) for *_, wanted in self.blocks)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task a block, whatever parallelism Ray would prefer."""
        return [
            ReadTask(
                lambda file=file, group=group, wanted=wanted: [_read_block(file, group, wanted)],
                BlockMetadata(num_rows=len(wanted), size_bytes=200 * len(wanted), input_files=None, exec_stats=None),
            )
            for file, group, wanted in self.blocks
        ]


def _open_rows(files: list[Location], done: np.ndarray) -> Iterator[tuple[Location, int, np.ndarray]]:
    for file in files:
        parquet = pq.ParquetFile(file.path, filesystem=file.filesystem)
        for group in range(parquet.num_row_groups):
            ids = parquet.read_row_group(group, columns=["row_id"]).column("row_id").to_numpy()
            yield file, group, np.flatnonzero(~np.isin(ids, done, assume_unique=True)).astype(np.int32)


def _read_block(file: Location, group: int, wanted: np.ndarray) -> pa.Table:
    parquet = pq.ParquetFile(file.path, filesystem=file.filesystem)
    found = parquet.read_row_group(group, columns=["row_id", "image_id", "uri", "size"]).take(wanted)
    credentials.remember(file)
    return found


def decode_rows(block: pa.Table, job: EmbedJob) -> pa.Table:
    """Fetch and decode the pictures of a block. Adds status, error, width, height and pixels (uint8 at model size)."""
    uris, sizes = block.column("uri").to_pylist(), block.column("size").to_pylist()
    fetched = fetch_batch(uris, sizes, job.storage, job.limits.max_bytes)
    side = min(job.spec.image_size)
    decoded = decode_batch(fetched, pil_transform(job.spec), job.limits.max_pixels, min_side=side)
    bytes_each = int(np.prod(job.spec.pixel_shape))
    return pa.table(
        {
            "row_id": block.column("row_id"),
            "image_id": block.column("image_id"),
            "status": pa.array(decoded.status, pa.string()),
            "error": pa.array(decoded.error, pa.string()),
            "width": pa.array(decoded.width, pa.int32()),
            "height": pa.array(decoded.height, pa.int32()),
            "pixels": pa.array(decoded.pixels, pa.binary(bytes_each)),
        }
    )


class EncodeRows:
    """Actor that holds the encoder and turns the pixels of a block into embeddings."""

    def __init__(self, job: EmbedJob, device: str, threads: int, batch_rows: int) -> None:
        import torch

        if device == "cpu":
            torch.set_num_threads(threads)
        self.encoder = ClipEncoder.load(job.spec, device)
        self.spec, self.batch_rows = job.spec, batch_rows

    def __call__(self, block: pa.Table) -> pa.Table:
        """[n] rows with `pixels` → the same rows with `embedding`, null where the status is not `ok`."""
        ok = pc.equal(block.column("status"), "ok")
        images = binary_rows(block.column("pixels").filter(ok), self.spec.pixel_shape)
        schema = embeddings_schema(self.spec.dim)
        column = pa.nulls(len(block), schema.field("embedding").type)
        if len(images):
            starts = range(0, len(images), self.batch_rows)
            vectors = [self.encoder.encode_pixels(images[i : i + self.batch_rows]) for i in starts]
            # Row i of the result is the next embedding if the row is ok, else null.
            position = pa.array(np.cumsum(ok.to_numpy()) - 1, mask=~ok.to_numpy())
            column = vector_column(np.concatenate(vectors)).take(position)
        return block.drop_columns(["pixels"]).append_column("embedding", column).cast(schema)


def write_rows(block: pa.Table, job: EmbedJob) -> pa.Table:
    """Write a block as one part file and return its status histogram, one row a status."""
    if len(block) == 0:
        return pa.table({"status": pa.array([], pa.string()), "rows": pa.array([], pa.int64())})
    part = job.folder / part_name(block.column("row_id"))
    retry(lambda: part.write_table(block), part.uri)
    counts = block.column("status").value_counts()
    return pa.table({"status": counts.field("values"), "rows": counts.field("counts")})


def embed(job: EmbedJob, manifest: list[Location], done: np.ndarray, resources: Resources) -> Iterable[pa.Table]:
    """Embed the manifest's rows that are not in `done` (row ids); yields status counts as parts are written."""
    device = resources.device
    actors = resources.encoder_actors
    source = ManifestRows(manifest, done, BLOCK_ROWS[device], actors)
    if not source.blocks:
        return
    # Decoding is faster than encoding on CPUs: without a limit it would fill the object store with pixels.
    block_bytes = int(np.prod(job.spec.pixel_shape)) * max(len(wanted) for *_, wanted in source.blocks)
    with streaming(max(2**27, 6 * actors * block_bytes)):
        # Both with the same demand, or Ray would not fuse them into one task.
        rows = ray.data.read_datasource(source, override_num_blocks=len(source.blocks), num_cpus=resources.task_cpus)
        stream = (
            rows.map_batches(
                decode_rows,
                fn_kwargs={"job": job},
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=resources.task_cpus,
            )
            .map_batches(
                EncodeRows,
                fn_constructor_args=(
                    job,
                    device,
                    resources.threads(actors),
                    256 if resources.use_gpu else 32,
                ),
                compute=ActorPoolStrategy(size=actors),
                batch_size=None,
                batch_format="pyarrow",
                **resources.encoder_actor,
            )
            # Few writers: each is a process with torch in it, and what it does is small.
            .map_batches(
                write_rows,
                fn_kwargs={"job": job},
                compute=TaskPoolStrategy(size=max(1, actors // 4)),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=resources.writer_cpus,
            )
        )
        yield from stream.iter_batches(batch_size=None, batch_format="pyarrow")
