"""Check encoders: bf16 against fp32, and images/s of `encode_pixels` against a plain forward pass on tensors on the device."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from table import Table, peak_gib, timed

from raycluster.config import EncoderConfig
from raycluster.encoder.clip import ClipEncoder, EncoderSpec, resolve_encoder

BLOCK = 512
"""The number of rows of a call, as the embed stage makes it with GPUs."""


def random_encoder(name: str, folder: Path) -> str:
    """Write an open_clip folder of this architecture with random weights; return its name for `encoder.model`."""
    import open_clip
    from safetensors.torch import save_model

    torch.manual_seed(0)
    save_model(open_clip.create_model(name, pretrained=None), str(folder / "open_clip_model.safetensors"))
    described = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    return f"local-dir:{folder}"


def check_encoders(table: Table, device: str, small: bool, compiled: bool) -> None:
    """Add the rows of all encoders to the table."""
    if small:
        _check_encoder(table, "builtin", "builtin", device, 70, 2, compiled)
        return
    for name, blocks in (("ViT-B-32", 40), ("ViT-L-14", 8)):
        with tempfile.TemporaryDirectory() as folder:
            _check_encoder(table, name, random_encoder(name, Path(folder)), device, BLOCK, blocks, compiled)


def _check_encoder(table: Table, name: str, model: str, device: str, rows: int, blocks: int, compiled: bool) -> None:
    specs = {kind: resolve_encoder(EncoderConfig(model=model, precision=kind), False) for kind in ("fp32", "bf16")}
    pixels = _pictures(rows, specs["fp32"])
    full = ClipEncoder.load(specs["fp32"], device).encode_pixels(pixels)
    encoder = ClipEncoder.load(specs["bf16"], device)
    half = encoder.encode_pixels(pixels)
    table.add(f"{name}: cosine of bf16 to fp32, least of {rows}", _cosine(half, full).min(), at_least=0.999)
    plain = _plain_rate(encoder, pixels, blocks)
    peak_gib(device)
    real = _real_rate(encoder, pixels, blocks)
    table.add(f"{name}: plain forward on resident tensors", plain, "images/s")
    table.add(f"{name}: encode_pixels, blocks of {rows} from host memory", real, "images/s")
    table.add(f"{name}: share of the plain rate", real / plain)
    table.add(f"{name}: rows of a batch", encoder.batch_rows(rows))
    table.add(f"{name}: peak memory of encode_pixels", peak_gib(device), "GiB")
    if compiled:
        faster = ClipEncoder.load(specs["bf16"], device, compile=True)
        found, seconds = timed(lambda: faster.encode_pixels(pixels), device)
        table.add(f"{name}: compiled, first block", seconds, "s")
        table.add(f"{name}: compiled, cosine to fp32, least", _cosine(found, full).min(), at_least=0.999)
        table.add(f"{name}: compiled, encode_pixels", _real_rate(faster, pixels, blocks), "images/s")


def _pictures(n: int, spec: EncoderSpec) -> np.ndarray:
    """Smooth random pictures, all different, in a read-only array as Ray gives it."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 7, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=spec.image_size, mode="bilinear")
    pixels = (smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    pixels.flags.writeable = False
    return pixels


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


@torch.inference_mode()
def _plain_rate(encoder: ClipEncoder, pixels: np.ndarray, blocks: int) -> float:
    batch = torch.from_numpy(pixels[: encoder.batch_rows(len(pixels))].copy()).to(encoder.device)
    count = max(1, blocks * len(pixels) // len(batch))
    encoder.forward(batch)
    _, seconds = timed(lambda: [encoder.forward(batch) for _ in range(count)][-1], encoder.device)
    return count * len(batch) / seconds


def _real_rate(encoder: ClipEncoder, pixels: np.ndarray, blocks: int) -> float:
    encoder.encode_pixels(pixels)
    _, seconds = timed(lambda: [encoder.encode_pixels(pixels) for _ in range(blocks)][-1], encoder.device)
    return blocks * len(pixels) / seconds
