"""Measure the memory of one decode task of a run with GPUs: a block of 512 large photographs, fetched and decoded in slices.

    python tests/benchmarks/decode.py                          # 512 photographs of 4 MB
    python tests/benchmarks/decode.py --rows 2048 --megabytes 8

It prints how far the resident memory of a process that does the work of such a task rises above its start, and the sizes of the originals
and of the pixels that it returns. The memory beyond the pixels must not grow with the rows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

MB = 2**20
DISTINCT = 8
"""The number of different photographs; the rows are links to them."""


def photograph(megabytes: float, seed: int) -> Image.Image:
    """Noise over a gradient. As a JPEG of quality 92 it has about `megabytes`, because that takes about half a byte a pixel."""
    side = int((megabytes * MB / 0.56) ** 0.5)
    noise = np.random.default_rng(seed).normal(0, 22, (side, side, 3))
    ramp = np.linspace(0, 200, side)[:, None, None]
    return Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8))


def draw(folder: Path, rows: int, megabytes: float) -> list[Path]:
    """Save the different photographs, and make `rows` links to them; return the links."""
    originals = []
    for seed in range(DISTINCT):
        originals.append(folder / f"original-{seed}.jpg")
        photograph(megabytes, seed).save(originals[-1], quality=92)
    links = [folder / f"{row:05d}.jpg" for row in range(rows)]
    for row, link in enumerate(links):
        link.symlink_to(originals[row % DISTINCT])
    return links


def resident(field: str) -> float:
    """Resident memory of this process in MiB: now (`VmRSS`) or at its peak (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def task(folder: Path) -> None:
    """Decode all pictures of the folder as one block, and print the memory that this took."""
    import pyarrow as pa

    from raycluster.config import EncoderConfig, StorageConfig
    from raycluster.encoder.clip import resolve_encoder
    from raycluster.encoder.embed import EmbedJob, decode_rows
    from raycluster.storage.location import locate

    limits = EncoderConfig(model="builtin")
    job = EmbedJob(resolve_encoder(limits, use_gpu=False), limits, StorageConfig(), locate(str(folder)))
    files = sorted(folder.glob("[0-9]*.jpg"))
    sizes = [os.path.getsize(file) for file in files]
    names = [str(file) for file in files]
    block = pa.table({"row_id": range(len(files)), "image_id": names, "uri": names, "size": sizes})
    decode_rows(block.slice(0, 2), job)  # a first call loads the libraries and makes their first allocations
    before, started = resident("VmRSS"), time.perf_counter()
    done = decode_rows(block, job)
    spent = time.perf_counter() - started
    assert set(done["status"].to_pylist()) == {"ok"}
    print(f"{len(files)} photographs of {sum(sizes) / len(sizes) / MB:.1f} MB, {sum(sizes) / MB:.0f} MB together")
    print(f"{len(files) / spent:.1f} images/s; pixels returned: {done.nbytes / MB:.0f} MB")
    print(f"peak above the start: {resident('VmHWM') - before:.0f} MiB")


def main() -> None:
    """Draw the photographs, and measure in another process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--megabytes", type=float, default=4.0)
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task(options.task)
        return
    with tempfile.TemporaryDirectory() as scratch:
        draw(Path(scratch), options.rows, options.megabytes)
        subprocess.run([sys.executable, __file__, "--task", scratch], check=True)


if __name__ == "__main__":
    main()
