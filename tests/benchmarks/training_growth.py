"""Measure whether training steps take as long on a million rows as on ten thousand, and how much memory a worker takes.

    python tests/benchmarks/training_growth.py --sizes 10000 1000000                       # dxmc, seic, fine-tuning
    python tests/benchmarks/training_growth.py --methods dxmc --sizes 10000 100000 --dim 128

Every measurement is a process of its own, which does what a Ray Train worker does. Embeddings are made up and lie in files that the process
maps, as a worker maps Ray's shared memory: these bytes are the same for all workers of a node, and are printed as `shared`. `private` is
the peak of the memory that each worker has for itself, less what it has before it sees the rows. Steps a second follow from the median
step. The neighbors of dxmc are drawn, because an exact search over a million rows is no part of a step. Fine-tuning streams the same few
drawn pictures again and again, as rows of their own, through Ray Data into a small tower.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

PICTURES = 64
WARM_UP = 5


def private() -> float:
    """Memory that this process alone has, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:"))


class Peak:
    """Context that watches the private memory of this process."""

    def __enter__(self) -> Peak:
        self.before = self.highest = private()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.highest = max(self.highest, private())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()

    @property
    def grown(self) -> float:
        return self.highest - self.before


class Enough(Exception):
    """As many steps were taken as are to be measured. An epoch of a million rows has many more."""


def heads(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train the heads of one method for `--steps` steps."""
    from raycluster.config import MethodConfig
    from raycluster.methods import registry
    from raycluster.methods.base import TrainedMethod, TrainingData
    from raycluster.training.loop import train

    torch.set_num_threads(options.threads)
    sides, neighbors = _made_up(options, folder)
    constants = {"batch_size": options.batch} if options.batch else {}
    config = MethodConfig.model_validate({"name": options.methods[0], "epochs": 10**6, **constants})
    with Peak() as peak:
        method = registry.build(config, options.dim, options.clusters, options.rows, 0)
        assert isinstance(method, TrainedMethod)
        graphs = {name: neighbors[:, : graph.k] for name, graph in method.graphs().items()}
        ends, after_step = [time.perf_counter()], method.after_step

        def counted(outputs: Mapping[str, torch.Tensor]) -> None:
            after_step(outputs)
            ends.append(time.perf_counter())
            if len(ends) > WARM_UP + options.steps:
                raise Enough

        method.after_step = counted  # type: ignore[method-assign]
        with contextlib.suppress(Enough):
            train(method, TrainingData(torch.arange(options.rows), *sides), graphs)
    shared = sum(side.nbytes for side in sides) + sum(graph.numel() * 4 for graph in graphs.values())
    return {
        "batch": method.schedule().batch_size,
        "rate": 1 / float(np.median(np.diff(ends[WARM_UP:]))),
        "set_up": ends[1] - ends[0],
        "private": peak.grown,
        "shared": shared / 2**20,
    }


def _made_up(options: argparse.Namespace, folder: Path) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Images and counterparts, float16 [N, d], and neighbors, int32 [N, k], as tensors over files."""
    draw, sides = np.random.default_rng(0), []
    centers = draw.standard_normal((options.clusters, options.dim), np.float32)
    for name in ("images", "counterparts"):
        array = np.lib.format.open_memmap(folder / name, "w+", np.float16, (options.rows, options.dim))
        for start in range(0, options.rows, 2**16):
            of = np.arange(start, min(start + 2**16, options.rows)) % options.clusters
            array[start : start + len(of)] = centers[of] + draw.standard_normal((len(of), options.dim), np.float32)
        array.flush()
        sides.append(torch.from_numpy(np.lib.format.open_memmap(folder / name, "r+")))
    array = np.lib.format.open_memmap(folder / "neighbors", "w+", np.int32, (options.rows, 50))
    for start in range(0, options.rows, 2**16):
        part = array[start : start + 2**16]
        part[:] = draw.integers(options.rows, size=part.shape, dtype=np.int32)
    array.flush()
    return sides, torch.from_numpy(np.lib.format.open_memmap(folder / "neighbors", "r+"))


def finetuning(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Fine-tune for `--steps` steps on pictures that Ray Data streams."""
    import pyarrow as pa
    import ray

    from raycluster.compute.connect import connect
    from raycluster.compute.resources import resolve
    from raycluster.config import EncoderConfig, FinetuneConfig, MethodConfig, ResourcesConfig, StorageConfig
    from raycluster.demo.drawing import draw_dataset
    from raycluster.demo.kinds import SHOWN_KINDS
    from raycluster.encoder.clip import resolve_encoder
    from raycluster.finetuning.finetune import FinetuneJob
    from raycluster.finetuning.pixels import PixelJob, batches
    from raycluster.finetuning.self_enhancement import Progress, train
    from raycluster.methods import registry

    files = [str(file) for file in draw_dataset(folder, PICTURES, SHOWN_KINDS, seed=900)]
    connect()
    resources, encoder = resolve(ResourcesConfig()), EncoderConfig(model="builtin")
    torch.set_num_threads(max(1, int(resources.reserved_cpus(1))))
    spec = resolve_encoder(encoder, resources.use_gpu)
    pixels = PixelJob(spec, encoder, StorageConfig(), 0, options.rows, options.batch or 128)
    job = FinetuneJob(FinetuneConfig(), pixels, torch.full((20,), 0.05))
    method = registry.build(MethodConfig(name="seic"), spec.dim, 20, options.rows, seed=0)
    model, _ = job.build(method, "cuda" if resources.use_gpu else "cpu")
    optimizer, progress, ends = job.optimizer(model), Progress(), [time.perf_counter()]
    uris = pa.DictionaryArray.from_arrays(np.arange(options.rows, dtype=np.int32) % len(files), files).cast(pa.string())
    images = pa.table({"row_id": np.arange(options.rows), "uri": uris, "size": pa.nulls(options.rows, pa.int64())})
    shared, reference = images.nbytes, ray.put(images)
    del images, uris
    with Peak() as peak:
        ends[0] = time.perf_counter()
        stream = batches(pixels, reference, range(WARM_UP + options.steps), 0, 1, resources.pixel_cpus(sharded=False))
        train(model, optimizer, stream, progress, 10**9, lambda: ends.append(time.perf_counter()))
    return {
        "batch": pixels.batch_size,
        "rate": 1 / float(np.median(np.diff(ends[WARM_UP:]))),
        "set_up": ends[1] - ends[0],
        "private": peak.grown,
        "shared": shared / 2**20,
    }


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["dxmc", "seic", "finetune"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, help="rows of a batch (default: the method's own)")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--scratch", help="folder for the made-up rows (default: the system's)")
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)  # of one measurement, in a process of its own
    options = parser.parse_args()
    if options.rows:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            measure = finetuning if options.methods == ["finetune"] else heads
            print(json.dumps(measure(options, Path(scratch))))
        return
    print(f"d = {options.dim}, {options.clusters} clusters, {options.threads} threads")
    for method in options.methods:
        for rows in options.sizes:
            words = [*sys.argv[1:], "--methods", method, "--rows", str(rows)]
            done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"  {method:9} {rows:9,} rows, batch {found['batch']:5}: {found['rate']:7.2f} steps/s, the first after "
                f"{found['set_up']:6.1f} s, private {found['private']:6.0f} MiB, shared {found['shared']:6.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
