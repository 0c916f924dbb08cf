"""Measure what shards save: the time of passes over originals and over shards, the bytes, and how near the embeddings stay.

    python tests/benchmarks/shards.py --images photos/ --model local-dir:/path/to/clip
    python tests/benchmarks/shards.py --images photos/ --model … --enlarge 6          # imitates pictures of a camera
    python tests/benchmarks/shards.py --images photos/ --model … --prefix s3://bucket/bench --endpoint http://127.0.0.1:7480

A pass is the work that embedding and each epoch of fine-tuning do before the encoder: the same Ray Data tasks read the pictures and decode
them to the encoder's size. `with shards` includes the time to write the shards. First the pictures are copied to `--prefix` or to a
temporary folder; a local folder is read from the page cache. Keys come from the usual AWS variables.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import ray
import ray.data
from PIL import Image
from pyarrow import fs

from raycluster.compute.node_checks import ALONE
from raycluster.compute.resources import Resources, resolve
from raycluster.compute.streaming import streaming
from raycluster.config import EncoderConfig, ResourcesConfig, StorageConfig
from raycluster.encoder.clip import ClipEncoder, EncoderSpec, pil_transform, resolve_encoder
from raycluster.encoder.embed import BLOCK_ROWS, SMALLEST_BLOCK, BlockRows, EmbedJob, decode_rows
from raycluster.images.decode import decode
from raycluster.images.listing.manifest import list_images
from raycluster.images.listing.numbering import number_rows
from raycluster.images.shard_pictures import stored
from raycluster.images.shards import ShardJob, shard
from raycluster.pipeline.prepare import SHARD_SIDE
from raycluster.storage.location import Location, locate
from raycluster.tables.blocks import find_blocks
from raycluster.tables.files import part_files, write_partitions


def copied(files: list[Path], count: int, enlarge: float, folder: Location) -> None:
    """Write `count` pictures below `folder`, some of them again if there are fewer. Enlarged pictures get grain like that of a sensor."""

    def copy(index: int) -> None:
        file = files[index % len(files)]
        data = file.read_bytes()
        if enlarge != 1:
            image = Image.open(file).convert("RGB")
            large = image.resize(tuple(round(enlarge * side) for side in image.size), Image.Resampling.BICUBIC)
            grain = np.random.default_rng(index).normal(0, 4, (large.height, large.width, 1))
            buffer = io.BytesIO()
            noisy = np.clip(np.asarray(large, np.float32) + grain, 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
            data = buffer.getvalue()
        (folder / f"{index % 20:02d}" / f"{index:06d}.jpg").write_bytes(data)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(copy, range(count)))


def one_pass(job: EmbedJob, files: list[Location], wanted: np.ndarray, resources: Resources) -> float:
    """Seconds in which every picture is read and decoded."""
    blocks = find_blocks(files, wanted, BLOCK_ROWS, fair=4 * max(1, int(resources.cpus)), multiple=SMALLEST_BLOCK)
    started, seen = time.perf_counter(), 0
    with streaming(2**29):
        stream = ray.data.read_datasource(BlockRows(blocks, ALONE), override_num_blocks=len(blocks), num_cpus=1)
        stream = stream.map_batches(
            decode_rows, fn_kwargs={"job": job}, batch_size=None, batch_format="pyarrow", num_cpus=1
        )
        for block in stream.iter_batches(batch_size=None, batch_format="pyarrow"):
            seen += block.column("status").to_pylist().count("ok")
    assert seen == len(wanted), f"{len(wanted) - seen} pictures could not be read"
    return time.perf_counter() - started


def nearness(files: list[Path], spec: EncoderSpec, size: int) -> Iterator[np.ndarray]:
    """For each picture, the cosine between the embedding of the original and that of the picture in the shard."""
    encoder, show = ClipEncoder.load(spec, "cpu"), pil_transform(spec)
    side, limit = min(spec.image_size), EncoderConfig().max_pixels
    for start in range(0, len(files), 64):
        data = [file.read_bytes() for file in files[start : start + 64]]
        held = [stored(decode(item, limit, size, enlarges=False).image, item, size) for item in data]
        one, two = (
            encoder.encode_pixels(np.stack([show(decode(item, limit, side).image) for item in items])).astype(
                np.float64
            )
            for items in (data, held)
        )
        yield (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)


def report_nearness(files: list[Path], spec: EncoderSpec) -> None:
    """Print the nearness at the encoder's side and at two others, for which these pictures are large.

    This needs an encoder without attention, because only such a network takes any side.
    """
    for side in (spec.image_size[0], 96, 64):
        small = replace(spec, image_size=(side, side))
        for factor in (1.15, 1.5, SHARD_SIDE, 2.0):
            size = round(factor * side)
            large = [file for file in files if min(Image.open(file).size) > 1.1 * size + 32][::3]
            for chosen, kind in ((files[::3], "all"), (large, "resized ones")):
                if len(chosen) > 20:
                    near = np.concatenate(list(nearness(chosen, small, size)))
                    print(
                        f"encoder at {side} pixels, shards.size {size} ({factor} ×), {kind} ({len(chosen)}): "
                        f"cosine mean {near.mean():.5f}, 1 % below {np.percentile(near, 1):.4f}",
                        flush=True,
                    )


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--count", type=int, default=1200)
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--size", type=int, help="shards.size; default as the product's")
    parser.add_argument("--enlarge", type=float, default=1.0)
    parser.add_argument("--prefix", help="s3://bucket/prefix; default a temporary local folder")
    parser.add_argument("--endpoint")
    parser.add_argument("--cpus", type=int)
    parser.add_argument("--nearness", action="store_true", help="only compare embeddings")
    options = parser.parse_args()
    files = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    encoder = EncoderConfig(model=options.model)
    spec = resolve_encoder(encoder, use_gpu=False)
    if options.nearness:
        report_nearness(files, spec)
        return
    storage = StorageConfig(endpoint_url=options.endpoint, region="us-east-1" if options.endpoint else None)
    with tempfile.TemporaryDirectory() as scratch:
        root = locate(f"{options.prefix or scratch}/{time.time_ns()}", storage)
        if root.scheme == "s3":
            client = fs.S3FileSystem(endpoint_override=options.endpoint, region="us-east-1", allow_bucket_creation=True)
            client.create_dir(root.path.split("/")[0])
        copied(files, options.count, options.enlarge, root / "photos")
        ray.init(address="local", num_cpus=options.cpus, include_dashboard=False, log_to_driver=False)
        resources = resolve(ResourcesConfig(use_gpu=False))
        listed = number_rows(list_images(((root / "photos").uri,), storage, None).rows)
        for rows in listed.partitions():
            write_partitions(root / "manifest", rows)
        manifest, wanted = part_files(root / "manifest"), listed.row_ids
        size = options.size or round(SHARD_SIDE * max(spec.image_size))
        job = EmbedJob(spec, encoder, storage, root / "embeddings")
        one_pass(job, manifest, wanted, resources)  # starts the worker processes, fills the page cache
        started = time.perf_counter()
        counts = sum(
            c.total() for c in shard(ShardJob(size, encoder, storage, root / "shards"), manifest, wanted, resources)
        )
        writing = time.perf_counter() - started
        assert counts == len(wanted)
        shards = part_files(root / "shards")
        # The passes alternate, so that other work on the machine slows both alike.
        both = [
            [one_pass(job, files, wanted, resources) for files in (manifest, shards)] for _ in range(options.passes)
        ]
        plain, through = zip(*both, strict=True)
        stored_bytes = sum(info.size for info in root.filesystem.get_file_info([file.path for file in shards]))
        given = sum(pc.sum(rows.column("size")).as_py() for rows in listed.partitions())
        print(
            f"{len(wanted)} pictures in {'object storage' if root.scheme == 's3' else 'a local folder'}, "
            f"{resources.cpus:.0f} cores, encoder at {spec.image_size[0]} pixels, shards.size {size}\n"
            f"originals: {given / len(wanted) / 1000:.1f} kB each; shards: {stored_bytes / len(wanted) / 1000:.1f} kB each "
            f"in {len(shards)} files ({stored_bytes / given:.0%} of the bytes on top)\n"
            f"writing the shards: {writing:.1f} s, {len(wanted) / writing:.0f} images/s"
        )
        # For one pass the median is taken, because other work may disturb a single pass.
        for passes, without, reading in (
            (1, np.median(plain), np.median(through)),
            (options.passes, sum(plain), sum(through)),
        ):
            with_them = writing + reading
            print(
                f"{passes} passes: without {without:.1f} s, {passes * len(wanted) / without:.0f} images/s; "
                f"with shards {with_them:.1f} s, {passes * len(wanted) / with_them:.0f} images/s; {without / with_them:.2f} ×"
            )
        print(
            f"a pass: originals median {np.median(plain):.1f} s ({min(plain):.1f}–{max(plain):.1f}), "
            f"shards median {np.median(through):.1f} s ({min(through):.1f}–{max(through):.1f})"
        )
        ray.shutdown()
        if root.scheme == "s3":
            root.delete()


if __name__ == "__main__":
    main()
