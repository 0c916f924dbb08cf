"""Encoders from tiny open_clip folders that the tests make themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from raycluster.config import EncoderConfig
from raycluster.encoder.clip import ClipEncoder, pil_transform, resolve_encoder
from raycluster.encoder.weights import matching_activation
from raycluster.errors import ConfigError

TOWERS = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def make_folder(folder: Path, preprocess: dict[str, Any] | None = None, image_size: int | tuple[int, int] = 32) -> Path:
    folder.mkdir(parents=True)
    towers = {**TOWERS, "vision_cfg": {**TOWERS["vision_cfg"], "image_size": image_size}}
    torch.manual_seed(0)
    model = open_clip.CLIP(**json.loads(json.dumps(towers)))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    description = {"model_cfg": towers, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("clip") / "tiny")


def local(folder: Path, **more: Any) -> EncoderConfig:
    return EncoderConfig(model=f"local-dir:{folder}", **more)


def photo(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).resize((width, height))


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("image_size", [32, (32, 48)])
def test_pixels_go_through_open_clips_own_preprocessing(tmp_path: Path, resize_mode: str, image_size: Any) -> None:
    preprocess = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "interpolation": "bilinear",
        "resize_mode": resize_mode,
    }
    made = make_folder(tmp_path / "m", preprocess, image_size)
    spec = resolve_encoder(local(made), use_gpu=False)
    model, _, preprocess_val = open_clip.create_model_and_transforms(f"local-dir:{made}")
    photos = [photo(64, 48), photo(20, 90), photo(1, 1), photo(32, 32)]
    pixels = np.stack([pil_transform(spec)(image) for image in photos])
    assert pixels.dtype == np.uint8
    assert pixels.shape == (4, *spec.pixel_shape)
    encoder = ClipEncoder.load(spec, "cpu")
    with torch.inference_mode():
        expected = model.eval().encode_image(torch.stack([preprocess_val(image) for image in photos]))
    np.testing.assert_allclose(encoder.encode_pixels(pixels), expected.numpy(), rtol=2e-3, atol=2e-3)


def test_texts_are_cut_at_the_models_context_length(folder: Path) -> None:
    encoder = ClipEncoder.load(resolve_encoder(local(folder), use_gpu=False), "cpu")
    texts = ["a cat", "a photo of a dog", "word " * 100]
    embeddings = encoder.encode_texts(texts)
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (3, 16)
    np.testing.assert_allclose(embeddings, np.vstack([encoder.encode_texts([text]) for text in texts]), atol=1e-5)


def test_the_fingerprint_follows_the_weights_not_their_place(folder: Path, tmp_path: Path) -> None:
    original = resolve_encoder(local(folder), use_gpu=False)
    shutil.copytree(folder, tmp_path / "copy")
    assert resolve_encoder(local(tmp_path / "copy"), use_gpu=False).fingerprint == original.fingerprint
    assert resolve_encoder(local(folder, precision="bf16"), use_gpu=False).fingerprint != original.fingerprint
    weights = load_file(tmp_path / "copy" / "open_clip_model.safetensors")
    weights["logit_scale"] = weights["logit_scale"] + 1e-3
    save_file(weights, tmp_path / "copy" / "open_clip_model.safetensors")
    assert resolve_encoder(local(tmp_path / "copy"), use_gpu=False).fingerprint != original.fingerprint
    other_mean = make_folder(tmp_path / "mean", {"mean": [0.1, 0.1, 0.1]})
    assert resolve_encoder(local(other_mean), use_gpu=False).fingerprint != original.fingerprint


def test_precision_is_bf16_on_a_gpu_and_fp32_on_a_cpu(folder: Path) -> None:
    assert resolve_encoder(local(folder), use_gpu=True).precision == "bf16"
    assert resolve_encoder(local(folder), use_gpu=False).precision == "fp32"
    with pytest.raises(ConfigError, match=r"encoder\.precision: fp16 needs a GPU"):
        resolve_encoder(local(folder, precision="fp16"), use_gpu=False)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_checkpoint_file_is_loaded_into_its_architecture(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(1)
    model = open_clip.create_model("RN50", pretrained=None)
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(model.state_dict(), file)
    else:
        save_file(model.state_dict(), file)
    spec = resolve_encoder(EncoderConfig(model="RN50", pretrained=str(file)), use_gpu=False)
    assert spec.image_size == (224, 224)
    pixels = pil_transform(spec)(photo(300, 200))[None]
    encoder = ClipEncoder.load(spec, "cpu")
    torch.testing.assert_close(encoder.model.visual.conv1.weight, model.visual.conv1.weight)
    assert np.isfinite(encoder.encode_pixels(pixels)).all()


@pytest.mark.parametrize(
    ("model", "pretrained", "quick", "expected"),
    [
        ("ViT-B-32", "openai", True, ("ViT-B-32-quickgelu", False)),
        ("ViT-B-32-quickgelu", "openai", True, ("ViT-B-32-quickgelu", False)),
        ("ViT-B-32", "laion2b_s34b_b79k", False, ("ViT-B-32", False)),
        ("ViT-L-14", "metaclip_400m", True, ("ViT-L-14-quickgelu", False)),
    ],
)
def test_a_quickgelu_mismatch_is_corrected(
    model: str, pretrained: str, quick: bool, expected: tuple[str, bool]
) -> None:
    assert matching_activation(model, pretrained, quick) == expected
    assert open_clip.pretrained.get_pretrained_cfg(model, pretrained).get("quick_gelu", False) is quick


def test_a_mismatch_without_a_twin_is_refused() -> None:
    with pytest.raises(ConfigError, match="were trained without QuickGELU"):
        matching_activation("ViT-B-32-quickgelu", "no_such_tag", False)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": "ViT-B-33", "pretrained": "openai"}, "did you mean ViT-B-32"),
        (
            {"model": "ViT-B-32", "pretrained": "nope"},
            r"neither a checkpoint file nor a weight tag of ViT-B-32; its tags are openai",
        ),
        ({"model": "local-dir:/nowhere"}, "the folder /nowhere does not exist"),
    ],
)
def test_what_cannot_be_loaded_is_named(config: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_encoder(EncoderConfig(**config), use_gpu=False)


def test_folders_that_are_no_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no open_clip_config\.json"):
        resolve_encoder(local(tmp_path), use_gpu=False)
    (tmp_path / "open_clip_config.json").write_text('{"model": 3}')
    with pytest.raises(ConfigError, match="is not an open_clip configuration"):
        resolve_encoder(local(tmp_path), use_gpu=False)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TOWERS}))
    with pytest.raises(ConfigError, match="holds no weights"):
        resolve_encoder(local(tmp_path), use_gpu=False)


def test_unreachable_weights_fail_soon_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"'openai' of ViT-B-32-quickgelu are not on this machine.*HF_HOME"):
        resolve_encoder(EncoderConfig(model="ViT-B-32", pretrained="openai"), use_gpu=False)


def test_the_photo_model_knows_photographs(shared: Path) -> None:
    spec = resolve_encoder(local(shared / "models" / "photo-clip"), use_gpu=False)
    encoder = ClipEncoder.load(spec, "cpu")
    files = sorted((shared / "images" / "caltech101-small").glob("*/*.jpg"))[::12]
    names = sorted({file.parent.name for file in files})
    images = encoder.encode_pixels(np.stack([pil_transform(spec)(Image.open(file)) for file in files])).astype(
        np.float32
    )
    texts = encoder.encode_texts([f"a photo of a {name.lower().replace('_', ' ')}" for name in names])
    best = (images @ (texts / np.linalg.norm(texts, axis=1, keepdims=True)).T).argmax(axis=1)
    assert np.mean([names[b] == file.parent.name for b, file in zip(best, files, strict=True)]) > 0.4
