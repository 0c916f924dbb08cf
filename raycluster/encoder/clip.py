"""CLIP encoders: any open_clip model turns uint8 pictures or texts into embeddings.

open_clip takes seconds to import, so functions import it when they need it: a process that works with ready-made embeddings starts without it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from safetensors.torch import load
from torch import Tensor

from raycluster.config import EncoderConfig, StorageConfig
from raycluster.encoder.feeding import Feeder, compiled, out_of_memory_explained
from raycluster.encoder.weights import find_weights
from raycluster.errors import ConfigError, RayclusterError
from raycluster.storage.location import Location

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TunedTower:
    """Weights of a fine-tuned vision tower: a safetensors file, and the hash that its content must have."""

    file: Location
    sha256: str


@dataclass(frozen=True)
class EncoderSpec:
    """A resolved encoder: small enough to send with every task, and complete enough to load the model on any node."""

    model: str
    """Name for `open_clip.create_model`, or `builtin` or an `s3://` address: their local path differs from node to node."""
    pretrained: str | None
    """Weight tag, path of a checkpoint that every node has, or `s3://` address of a checkpoint."""
    precision: str
    """`fp32`, `bf16` or `fp16`."""
    image_size: tuple[int, int]
    """Height and width of a picture at model resolution."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str
    fill_color: int
    dim: int
    """Size d of an embedding."""
    force_quick_gelu: bool
    fingerprint: str
    """Hash of configuration, preprocessing, precision and weights. It does not depend on the place where the weights lie."""
    weights_sha256: str
    """Hash of the checkpoint's content."""
    storage: StorageConfig = StorageConfig()
    """Settings by which `s3://` addresses are reached."""
    tower: TunedTower | None = None
    """A fine-tuned vision tower in place of the model's own."""

    def tuned(self, tower: TunedTower) -> EncoderSpec:
        """Return this encoder with a fine-tuned vision tower."""
        covered = hashlib.sha256(f"{self.fingerprint} {tower.sha256}".encode()).hexdigest()[:16]
        return replace(self, tower=tower, fingerprint=covered)

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """The shape of one picture as :func:`pil_transform` returns it: height, width, RGB."""
        return (*self.image_size, 3)


def resolve_encoder(config: EncoderConfig, use_gpu: bool, storage: StorageConfig | None = None) -> EncoderSpec:
    """Find the weights and everything that must be known before pictures are decoded, without loading the model.

    Raises :class:`ConfigError` for an unknown model, tag or file, and for weights that cannot be obtained.
    """
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    precision = config.precision if config.precision != "auto" else "bf16" if use_gpu else "fp32"
    if precision == "fp16" and not use_gpu:
        raise ConfigError("encoder.precision: fp16 needs a GPU; use fp32 or bf16, or leave it out")
    weights = find_weights(config, storage)
    sha256 = weights.sha256
    preprocess = merge_preprocess_dict(asdict(PreprocessCfg()), weights.preprocess)
    side = weights.model_config.get("vision_cfg", {}).get("image_size", 224)
    size = (side, side) if isinstance(side, int) else tuple(side)
    covered = {
        "model": weights.model_config,
        "preprocess": {**preprocess, "size": size},
        "quick_gelu": weights.force_quick_gelu,
        "precision": precision,
        "weights": sha256,
    }
    return EncoderSpec(
        model=config.model if config.model == "builtin" or _remote(config.model) else weights.model,
        pretrained=config.pretrained if _remote(config.pretrained) else weights.pretrained,
        precision=precision,
        image_size=size,
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        interpolation=preprocess["interpolation"],
        resize_mode=preprocess["resize_mode"],
        fill_color=preprocess["fill_color"],
        dim=weights.model_config["embed_dim"],
        force_quick_gelu=weights.force_quick_gelu,
        fingerprint=hashlib.sha256(json.dumps(covered, sort_keys=True, default=str).encode()).hexdigest()[:16],
        weights_sha256=sha256,
        storage=storage or StorageConfig(),
    )


def _remote(name: str | None) -> bool:
    return name is not None and name.startswith("s3://")


def check_encoder(spec: EncoderSpec) -> None:
    """Load the model and encode one text; raise :class:`ConfigError` for a broken encoder before any picture is decoded."""
    encoder = ClipEncoder.load(spec, "cpu")
    try:
        encoder.encode_texts(["a photo"])
    except ImportError as error:
        raise _unloadable(spec, error) from error


def _unloadable(spec: EncoderSpec, error: Exception) -> ConfigError:
    source = spec.model if spec.pretrained is None else f"{spec.pretrained} as {spec.model}"
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return ConfigError(
        f"encoder: {source} cannot be loaded ({reason}); check that the weights belong to this architecture, and that the packages it needs are installed"
    )


@lru_cache(maxsize=8)
def pil_transform(spec: EncoderSpec) -> Callable[[Image], np.ndarray]:
    """Return the part of open_clip's own preprocessing that works on pictures: resize, crop, RGB.

    The returned function turns a PIL image into uint8 [height, width, 3]. :meth:`ClipEncoder.encode_pixels` does the rest (scale, mean,
    std) on the device, so that pictures are sent as bytes and not as floats.
    """
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.transforms import Compose, ToTensor

    config = PreprocessCfg(
        size=spec.image_size if spec.image_size[0] != spec.image_size[1] else spec.image_size[0],
        mean=spec.mean,
        std=spec.std,
        interpolation=spec.interpolation,
        resize_mode=spec.resize_mode,
        fill_color=spec.fill_color,
    )
    steps = image_transform_v2(config, is_train=False).transforms
    to_tensor = next(index for index, step in enumerate(steps) if isinstance(step, ToTensor))
    on_pictures = Compose(steps[:to_tensor])
    return lambda image: np.array(on_pictures(image), np.uint8)


class ClipEncoder:
    """A loaded open_clip model in inference mode."""

    def __init__(self, model: Any, name: str, spec: EncoderSpec, device: str, compile: bool = False) -> None:
        """`name`: the name that open_clip has for the model on this machine. `compile`: see :meth:`load`."""
        self.model, self.spec, self.device = model, spec, device
        self._name = name
        scale = 255.0
        # These lie on the device from the start: copying them for each batch would make the host wait for the GPU.
        self._mean = (torch.tensor(spec.mean) * scale).view(1, 3, 1, 1).to(device)
        self._std = (torch.tensor(spec.std) * scale).view(1, 3, 1, 1).to(device)
        self._tokenizer: Any = None  # made for the first text; pictures need no tokenizer
        forward = compiled(self.forward) if compile else self.forward
        self._feeder = Feeder(forward, spec.pixel_shape, spec.dim, device)

    @classmethod
    def load(cls, spec: EncoderSpec, device: str, compile: bool = False) -> ClipEncoder:
        """Load the model onto `device` (`cpu`, `cuda`); a machine that lacks the weights downloads them first.

        `compile`: compile the vision tower at the first pictures (`torch.compile`). This takes a minute and needs a C++ compiler.
        Raises :class:`ConfigError` for weights that cannot be loaded or that have changed since the spec was made, and
        :class:`RayclusterError` if the GPU has too little memory.
        """
        import open_clip

        weights = find_weights(EncoderConfig(model=spec.model, pretrained=spec.pretrained), spec.storage)
        # Nothing would show later that one table holds embeddings of two encoders.
        if weights.sha256 != spec.weights_sha256:
            raise ConfigError(
                f"encoder: {weights.file} is not the checkpoint that this run began with; restore it, or run the command again to use it as it is now"
            )
        try:
            with out_of_memory_explained():
                model = open_clip.create_model(
                    weights.model,
                    pretrained=weights.pretrained,
                    precision=spec.precision,
                    device=device,
                    force_quick_gelu=spec.force_quick_gelu,
                    require_pretrained=True,
                )
        except RayclusterError:
            raise
        except Exception as error:
            raise _unloadable(spec, error) from error
        if spec.tower is not None:
            model.visual.load_state_dict(load(spec.tower.file.read_verified(spec.tower.sha256)))
        # Pictures come as height, width, channel. In this memory format convolutions take them as they are, 1.5 times as fast on CPUs.
        model.visual.to(memory_format=torch.channels_last)
        return cls(model.eval().requires_grad_(False), weights.model, spec, device, compile)

    def normalized(self, pixels: Tensor) -> Tensor:
        """Turn uint8 [B, height, width, 3] on any device into the float32 [B, 3, height, width] that the vision tower expects."""
        mean, std = self._mean.to(pixels.device), self._std.to(pixels.device)
        return pixels.permute(0, 3, 1, 2).float().sub_(mean).div_(std)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode one batch, uint8 [B, height, width, 3] on the encoder's device, to float16 [B, d] there, not normalized."""
        x = self.normalized(pixels).to(_DTYPES[self.spec.precision])
        embeddings: Tensor = self.model.encode_image(x, normalize=False)
        return embeddings.half()

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Encode pictures, uint8 [n, height, width, 3], to float16 [n, d] embeddings, not normalized.

        Pass all pictures of a block in one call: this method divides any number of pictures into batches that suit the device.
        """
        return self._feeder(pixels)

    def batch_rows(self, n: int) -> int:
        """Return the rows of a batch when `n` pictures are encoded in one call."""
        return self._feeder.batch_rows(n)

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """Encode B texts, cut at the model's context length, to float32 [B, d] embeddings, not normalized."""
        if self._tokenizer is None:
            import open_clip

            self._tokenizer = open_clip.get_tokenizer(self._name)
        with out_of_memory_explained():
            return self.model.encode_text(self._tokenizer(texts).to(self.device), normalize=False).float().cpu().numpy()
