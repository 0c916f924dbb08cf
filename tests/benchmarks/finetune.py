"""Measure fine-tuning: what it does to the clusters, and its speed through the whole pipeline and on tensors in memory.

    python tests/benchmarks/finetune.py clusters                                    # the demo's pictures, five seeds
    python tests/benchmarks/finetune.py clusters --images photos/ --clusters 20 --model local-dir:/path/to/clip --epochs 20
    python tests/benchmarks/finetune.py speed                                       # drawn pictures, the built-in model
    python tests/benchmarks/finetune.py speed --images photos/ --model ViT-B-32 --batch 32   # random weights

`clusters` prints ACC, NMI and ARI before and after, and the measures and the verdict of the guard, which uses no labels. Folder names are
the labels. `speed` runs the code of a Train worker at the niceness of Ray's workers: first steps on pictures that Ray Data streams, then
the same steps with all cores on the same views, which are kept in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import ray
import torch
from safetensors.torch import save_file

import raycluster
from raycluster.compute.connect import connect
from raycluster.compute.resources import resolve
from raycluster.config import EncoderConfig, FinetuneConfig, MethodConfig, ResourcesConfig, StorageConfig
from raycluster.demo.drawing import draw_dataset
from raycluster.demo.kinds import SHOWN_KINDS
from raycluster.demo.main import demo
from raycluster.encoder.clip import resolve_encoder
from raycluster.finetuning.finetune import FinetuneJob
from raycluster.finetuning.pixels import PixelJob, batches
from raycluster.finetuning.self_enhancement import Progress, SelfEnhancement, Views, train
from raycluster.methods import registry

WARM_UP = 8


def clusters(options: argparse.Namespace) -> None:
    """Print the scores before and after fine-tuning, one line for each run."""
    given = {key: value for key in ("epochs", "batch_size", "learning_rate") if (value := getattr(options, key))}
    tuning = {"enabled": True, "alignment": not options.as_published, **given}
    gains: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in options.seeds:
            for method in options.methods:
                if options.images is None:
                    result = demo(scratch, seed, method, tuning)
                else:
                    result = _run(options, method, seed, f"{scratch}/{method}-{seed}", tuning)
                gains.setdefault(method, []).append(_print(method, seed, result))
    for method, values in gains.items():
        print(f"{method}: median gain in ACC {100 * statistics.median(values):+.1f} points")


def _run(options: argparse.Namespace, method: str, seed: int, output: str, tuning: dict[str, Any]) -> dict[str, Any]:
    config = {
        "images": str(options.images),
        "labels": "folder",
        "output": output,
        "clusters": options.clusters,
        "seed": seed,
        "encoder": {"model": options.model},
        "method": {"name": method},
        "finetune": tuning,
    }
    return raycluster.run(config).as_json()


def _print(method: str, seed: int, result: dict[str, Any]) -> float:
    markers = Path(result["output"]) / "_stages"
    tuned = json.loads((markers / "finetune.json").read_text())
    after = result["metrics"]
    before = json.loads((markers / "evaluate.json").read_text())["facts"].get("before", after)
    scores = "  ".join(f"{key.upper()} {before[key]:.3f} → {after[key]:.3f}" for key in ("acc", "nmi", "ari"))
    guard = tuned["facts"]["guard"]
    print(
        f"{method} seed {seed}: {scores}  confidence {before['confidence']:.2f} → {after['confidence']:.2f}  "
        f"consistency {guard['consistency_before']:.3f} → {guard['consistency_after']:.3f}  kept {guard['agreement']:.1%}  "
        f"{tuned['facts']['kind']}, {tuned['seconds']:.0f} s{'  refused' if tuned['facts']['refused'] else ''}",
        flush=True,
    )
    return float(after["acc"] - before["acc"])


def speed(options: argparse.Namespace) -> None:
    """Print images a second through the pipeline and in memory, repeated, and their ratio."""
    os.nice(15)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.images
        if folder is None:
            folder = Path(scratch) / "drawn"
            draw_dataset(folder, 480, SHOWN_KINDS, seed=900)
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        encoder = _encoder(options.model, Path(scratch))
        connect()
        resources = resolve(ResourcesConfig())
        spec = resolve_encoder(encoder, resources.use_gpu)
        pixels = PixelJob(spec, encoder, StorageConfig(), 0, len(files), options.batch)
        job = FinetuneJob(FinetuneConfig(), pixels, torch.full((20,), 0.05))
        method = registry.build(MethodConfig(name="seic"), spec.dim, 20, len(files), seed=0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model, _ = job.build(method, device)
        images = pa.table(
            {"row_id": np.arange(len(files)), "uri": [str(f) for f in files], "size": pa.nulls(len(files), pa.int64())}
        )
        cpus = resources.pixel_cpus(sharded=False)
        ratios = []
        for repeat in range(options.repeats):
            steps = range(repeat * 1000, repeat * 1000 + WARM_UP + options.steps)
            seen: list[Views] = []
            # As in a worker, one core is left for decoding; the steps in memory use all cores.
            torch.set_num_threads(max(1, int(resources.reserved_cpus(1))))
            through = _rate(job, model, _kept(batches(pixels, ray.put(images), steps, 0, 1, cpus), seen), options.steps)
            torch.set_num_threads(resources.node_cpus)
            memory = _rate(job, model, (seen[i % len(seen)] for i in range(len(steps))), options.steps)
            ratios.append(through / memory)
            print(f"pipeline {through:.1f} images/s, in memory {memory:.1f} images/s: {ratios[-1]:.2f}", flush=True)
        print(
            f"{options.model}, batch {options.batch}, {os.cpu_count()} cores, {device}: "
            f"median ratio {statistics.median(ratios):.2f}"
        )


def _encoder(model: str, scratch: Path) -> EncoderConfig:
    """An open_clip architecture gets random weights, because speed does not depend on them."""
    if model == "builtin" or model.startswith("local-dir:"):
        return EncoderConfig(model=model)
    file = scratch / "random.safetensors"
    save_file(dict(open_clip.create_model(model).state_dict()), file)
    return EncoderConfig(model=model, pretrained=str(file))


def _kept(stream: Iterable[Views], seen: list[Views]) -> Iterable[Views]:
    for views in stream:
        if len(seen) < WARM_UP:
            seen.append(views)
        yield views


def _rate(job: FinetuneJob, model: SelfEnhancement, stream: Iterable[Views], steps: int) -> float:
    progress, optimizer = Progress(), job.optimizer(model)
    started = 0.0

    def after_step() -> None:
        nonlocal started
        if progress.step == WARM_UP:
            started = time.perf_counter()

    train(model, optimizer, stream, progress, 10**9, after_step)
    return steps * job.pixels.batch_size / (time.perf_counter() - started)


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (commands.add_parser("clusters"), commands.add_parser("speed")):
        command.add_argument("--images", type=Path)
        command.add_argument("--model", default="builtin")
    ours = commands.choices["clusters"]
    ours.add_argument("--clusters", type=int, default=len(SHOWN_KINDS))
    ours.add_argument("--methods", nargs="+", default=["seic", "consensus", "dxmc"])
    ours.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    ours.add_argument("--epochs", type=int)
    ours.add_argument("--batch-size", type=int)
    ours.add_argument("--learning-rate", type=float)
    ours.add_argument("--as-published", action="store_true", help="without the alignment of cluster sizes")
    commands.choices["speed"].add_argument("--batch", type=int, default=128)
    commands.choices["speed"].add_argument("--steps", type=int, default=40)
    commands.choices["speed"].add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    (clusters if options.command == "clusters" else speed)(options)


if __name__ == "__main__":
    main()
