"""Measure what the size of a cluster follows from: images a second of one core that decodes, and of one core or GPU that encodes.

    python tests/benchmarks/rates.py --images photos/ --model ViT-B-32-quickgelu

It also prints how many cores such a GPU needs. Run it on a machine of the kind that you want to rent. Speed does not depend on the weights,
so they are random and nothing is downloaded. On CPUs it measures CPU time and not wall time, because other work on the machine changes
that little. Reading from object storage is not included, because it waits and does not compute.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from raycluster.config import EncoderConfig
from raycluster.encoder.clip import ClipEncoder, EncoderSpec, pil_transform, resolve_encoder
from raycluster.images.decode import decode_batch
from raycluster.images.fetch import Fetched


def random_weights(model: str, folder: Path) -> str:
    """Write an open_clip folder of this architecture with random weights; return its name for `encoder.model`."""
    import open_clip
    from safetensors.torch import save_model

    save_model(open_clip.create_model(model, pretrained=None), str(folder / "open_clip_model.safetensors"))
    description = {"model_cfg": open_clip.get_model_config(model), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(description))
    return f"local-dir:{folder}"


def decoding(files: list[Path], spec: EncoderSpec) -> tuple[float, float]:
    """Images a second of a core, and the mean size of a file in kB."""
    fetched = [Fetched(file.read_bytes()) for file in files]
    started = time.process_time()
    decode_batch(fetched, pil_transform(spec), 100_000_000, min_side=min(spec.image_size))
    spent = time.process_time() - started
    return len(files) / spent, float(np.mean([len(each.data or b"") for each in fetched])) / 1000


def encoding(spec: EncoderSpec, device: str, batches: int) -> float:
    """Images a second of a core or of a GPU."""
    encoder = ClipEncoder.load(spec, device)
    # On a GPU this is a block as the embed stage gives it. The time includes the copies to and from the GPU.
    pixels = np.zeros((512 if device == "cuda" else 32, *spec.pixel_shape), np.uint8)
    clock: Callable[[], float] = time.perf_counter if device == "cuda" else time.process_time
    encoder.encode_pixels(pixels)  # warms up; the result comes back to the CPU, so that all of the work is timed
    started = clock()
    for _ in range(batches):
        encoder.encode_pixels(pixels)
    return batches * len(pixels) / (clock() - started)


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", default="ViT-B-32-quickgelu")
    parser.add_argument("--sample", type=int, default=500, help="pictures decoded (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument(
        "--gpus",
        type=float,
        nargs="*",
        default=[5000.0, 15000.0],
        help="images/s of GPUs to be fed (default: %(default)s)",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    files = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    files = files[:: max(1, len(files) // options.sample)][: options.sample]
    with tempfile.TemporaryDirectory() as scratch:
        spec = resolve_encoder(EncoderConfig(model=random_weights(options.model, Path(scratch))), device == "cuda")
        decoded, size = decoding(files, spec)
        encoded = encoding(spec, device, options.batches)
    what = torch.cuda.get_device_name() if device == "cuda" else "a core"
    print(f"{options.model}, {os.cpu_count()} cores, {len(files)} pictures of {size:.0f} kB on average")
    print(f"decoding: {decoded:.0f} images/s a core")
    print(f"encoding: {encoded:.0f} images/s on {what}, {spec.precision}")
    pixel_bytes = math.prod(spec.pixel_shape)
    for rate in [*([encoded] if device == "cuda" else []), *options.gpus]:
        print(
            f"a GPU of {rate:.0f} images/s: {math.ceil(rate / decoded)} cores that decode, {rate * size * 8e-6:.1f} Gbit/s of files, "
            f"{rate * pixel_bytes * 8e-9:.1f} Gbit/s of pixels to it"
        )


if __name__ == "__main__":
    main()
