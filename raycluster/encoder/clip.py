"""CLIP encoders: any open_clip model, from uint8 pictures or texts to embeddings."""

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
from raycluster.storage import Location

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TunedTower:
    """Weights of a fine-tuned vision tower: a safetensors file, and the hash of what it must hold."""

    file: Location
    sha256: str


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder, resolved: small enough to travel with every task, complete enough to load it anywhere."""

    model: str
    """Name for `open_clip.create_model`; or `builtin` or an `s3://` address, whose place differs from node to node."""
    pretrained: str | None
    """Weight tag, path of a checkpoint on every node, or its `s3://` address."""
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
    """Changes with configuration, preprocessing, precision or weights, not with the place where the weights lie."""
    weights_sha256: str
    """Hash of the checkpoint's content."""
    storage: StorageConfig = StorageConfig()
    """How `s3://` addresses are reached."""
    tower: TunedTower | None = None
    """A fine-tuned vision tower in place of the model's own."""

    def tuned(self, tower: TunedTower) -> EncoderSpec:
        """This encoder with a fine-tuned vision tower."""
        covered = hashlib.sha256(f"{self.fingerprint} {tower.sha256}".encode()).hexdigest()[:16]
        return replace(self, tower=tower, fingerprint=covered)

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """Shape of one picture as :func:`pil_transform` gives it: height, width, RGB."""
        return (*self.image_size, 3)


def resolve_encoder(config: EncoderConfig, use_gpu: bool, storage: StorageConfig | None = None) -> EncoderSpec:
    """Find the weights and everything that must be known before pictures are decoded; loads no model.

    Raises :class:`ConfigError` for an unknown model, tag or file, and for weights that cannot be had.
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
    """Load the model once and run both towers on one input; raises :class:`ConfigError` before thousands of pictures do."""
    encoder = ClipEncoder.load(spec, "cpu")
    try:
        encoder.encode_texts(["a photo"])
    except ImportError as error:
        raise _unloadable(spec, error) from error


def _unloadable(spec: EncoderSpec, error: Exception) -> ConfigError:
    source = spec.model if spec.pretrained is None else f"{spec.pretrained} as {spec.model}"
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return ConfigError(
        f"encoder: {source} cannot be loaded ({reason}); check that the weights belong to this architecture"
    )


@lru_cache(maxsize=8)
def pil_transform(spec: EncoderSpec) -> Callable[[Image], np.ndarray]:
    """The part of open_clip's own preprocessing that works on pictures: resize, crop, RGB.

    Returns a function from a PIL image to uint8 [height, width, 3]; the rest (scale, mean, std) is done on the device by
    :meth:`ClipEncoder.encode_pixels`, so that pictures travel as bytes.
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
        """`name`: what open_clip calls the model on this machine. `compile`: see :meth:`load`."""
        self.model, self.spec, self.device = model, spec, device
        self._name = name
        scale = 255.0
        # On the device already: a copy for each batch would make the host wait for the GPU.
        self._mean = (torch.tensor(spec.mean) * scale).view(1, 3, 1, 1).to(device)
        self._std = (torch.tensor(spec.std) * scale).view(1, 3, 1, 1).to(device)
        self._tokenizer: Any = None  # made at the first text; pictures need none
        forward = compiled(self.forward) if compile else self.forward
        self._feeder = Feeder(forward, spec.pixel_shape, spec.dim, device)

    @classmethod
    def load(cls, spec: EncoderSpec, device: str, compile: bool = False) -> ClipEncoder:
        """Load the model onto `device` (`cpu`, `cuda`); on a machine without the weights they are downloaded first.

        `compile`: compile the vision tower at the first pictures (`torch.compile`), which takes a minute and a C++ compiler.
        Raises :class:`ConfigError` for weights that cannot be loaded, or are others than when the spec was made, and
        :class:`RayclusterError` if the memory of the GPU does not suffice.
        """
        import open_clip

        weights = find_weights(EncoderConfig(model=spec.model, pretrained=spec.pretrained), spec.storage)
        # Embeddings of two encoders in one table would look like any others.
        if weights.sha256 != spec.weights_sha256:
            raise ConfigError(
                f"encoder: {weights.file} is not the checkpoint that this run began with; restore it, or start again"
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
        # Pictures come as height, width, channel: convolutions take them as they are, half as fast again on CPUs.
        model.visual.to(memory_format=torch.channels_last)
        return cls(model.eval().requires_grad_(False), weights.model, spec, device, compile)

    def normalized(self, pixels: Tensor) -> Tensor:
        """uint8 [B, height, width, 3] on any device → float32 [B, 3, height, width] as the vision tower expects them."""
        mean, std = self._mean.to(pixels.device), self._std.to(pixels.device)
        return pixels.permute(0, 3, 1, 2).float().sub_(mean).div_(std)

    def forward(self, pixels: Tensor) -> Tensor:
        """One batch, uint8 [B, height, width, 3] on the encoder's device → float16 [B, d] there, not normalized."""
        x = self.normalized(pixels).to(_DTYPES[self.spec.precision])
        embeddings: Tensor = self.model.encode_image(x, normalize=False)
        return embeddings.half()

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [n, height, width, 3] → float16 [n, d] embeddings, not normalized.

        Takes any number of pictures, all of a block in one call: it divides them into batches that suit the device.
        """
        return self._feeder(pixels)

    def batch_rows(self, n: int) -> int:
        """Rows of a batch when `n` pictures are encoded in one call."""
        return self._feeder.batch_rows(n)

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """B texts → float32 [B, d] embeddings, not normalized; cut at the model's context length."""
        if self._tokenizer is None:
            import open_clip

            self._tokenizer = open_clip.get_tokenizer(self._name)
        with out_of_memory_explained():
            return self.model.encode_text(self._tokenizer(texts).to(self.device), normalize=False).float().cpu().numpy()
