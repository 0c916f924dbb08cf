"""Compare the embed stage with a plain PyTorch loop, and measure its memory at two sizes.

    python tests/benchmarks/embed.py --images photos/ --model local-dir:/path/to/clip
    python tests/benchmarks/embed.py                      # drawn pictures and the built-in model

Both read the same files with the same model, precision and cores. Rates are those of the steady state. For the stage they come from the
times at which its part files appeared, between a fifth and nine tenths of the images; for the loop they begin after the warm-up. Memory is
the peak of the proportional set size of all processes of the run, Ray's included.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from memory import run_measured


def plain_loop(files: list[Path], model: str) -> float:
    """Images a second of one process, in which threads read and decode ahead and the model uses all cores."""
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from PIL import Image

    from raycluster.config import EncoderConfig
    from raycluster.encoder.clip import ClipEncoder, pil_transform, resolve_encoder

    torch.set_num_threads(os.cpu_count() or 1)
    spec = resolve_encoder(EncoderConfig(model=model), use_gpu=False)
    encoder, transform = ClipEncoder.load(spec, "cpu"), pil_transform(spec)

    def read(batch: list[Path]) -> np.ndarray:
        return np.stack([transform(Image.open(file)) for file in batch])

    batches = [files[i : i + 32] for i in range(0, len(files), 32)]
    started, counted = 0.0, 0
    with ThreadPoolExecutor(2) as pool:
        ahead = [pool.submit(read, batch) for batch in batches[:4]]
        for index in range(len(batches)):
            if index == 5:
                started, counted = time.perf_counter(), 0
            encoder.encode_pixels(ahead.pop(0).result())
            counted += len(batches[index])
            if index + 4 < len(batches):
                ahead.append(pool.submit(read, batches[index + 4]))
    return counted / (time.perf_counter() - started)


def stage(images: str, model: str, *more: str) -> tuple[float, float]:
    """Images a second of `raycluster embed`, with `more` options, and the peak memory of its processes in MiB."""
    with tempfile.TemporaryDirectory() as output:
        with Appearances(Path(output)) as parts:
            _, peak = run_measured([*command(images, model, output), *more])
        return parts.steady_rate(), peak


def command(images: str, model: str, output: str) -> list[str]:
    """The command that embeds these pictures."""
    start = [sys.executable, "-m", "raycluster.cli", "embed", "--images", images, "--output", output]
    return [*start, "--clusters", "2", "--encoder.model", model]


class Appearances:
    """The pieces of the embeddings table that appear while this context lasts. The stage compacts them at its end."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.seen: dict[Path, tuple[float, int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Appearances:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            for part in self.output.glob("embeddings/*/part-*"):
                if part not in self.seen:
                    with contextlib.suppress(FileNotFoundError):  # compacted in this moment
                        self.seen[part] = (part.stat().st_mtime, pq.read_metadata(part).num_rows)

    def steady_rate(self) -> float:
        """Images a second between a fifth and nine tenths of the table, by the times of its pieces."""
        times, sizes = np.array(sorted(self.seen.values())).T
        rows = np.cumsum(sizes)
        first, last = np.searchsorted(rows, 0.2 * rows[-1]), np.searchsorted(rows, 0.9 * rows[-1])
        return float((rows[last] - rows[first]) / (times[last] - times[first]))


def linked(files: list[Path], count: int, folder: Path) -> Path:
    """Make a folder of `count` links to the files; each file is linked as often as needed."""
    folder.mkdir()
    for index in range(count):
        source = files[index % len(files)]
        (folder / f"{index:06d}{source.suffix}").symlink_to(source.resolve())
    return folder


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--sizes", type=int, nargs=2, default=(2_000, 20_000))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        print(plain_loop(sorted(options.plain.iterdir()), options.model))
        return
    with tempfile.TemporaryDirectory() as scratch:
        if options.images is None:
            from raycluster.demo.drawing import draw_dataset
            from raycluster.demo.kinds import SHOWN_KINDS

            options.images = Path(scratch) / "drawn"
            draw_dataset(options.images, 480, SHOWN_KINDS, seed=900)
        files = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        small, large = (linked(files, size, Path(scratch) / str(size)) for size in options.sizes)
        _, at_small = stage(str(small), options.model)
        print(f"cores: {os.cpu_count()}, model {options.model}, {len(files)} different files")
        measured = []
        for _ in range(options.repeats):
            plain = [sys.executable, __file__, "--plain", str(small), "--model", options.model]
            loop = float(subprocess.run(plain, check=True, capture_output=True, text=True).stdout.split()[-1])
            # The rate is measured at the large size: a short stage looks faster than it is, because pictures
            # are already decoded while the actors start.
            rate, memory = stage(str(large), options.model)
            measured.append((rate / loop, memory))
            print(f"{len(list(large.iterdir()))} images: stage {rate:.0f} images/s; plain loop {loop:.0f} images/s")
        ratio, memory = (statistics.median(values) for values in zip(*measured, strict=True))
        print(f"ratio: median {ratio:.2f} ({', '.join(f'{each:.2f}' for each, _ in measured)})")
        print(
            f"peak memory: {at_small:.0f} MiB at {options.sizes[0]}, {memory:.0f} MiB at {options.sizes[1]} images "
            f"({memory / at_small - 1:+.0%})"
        )


if __name__ == "__main__":
    main()
