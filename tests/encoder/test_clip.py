"""Test encoders from tiny open_clip folders, which the tests make, against the models that open_clip itself loads."""

from __future__ import annotations

import copy
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
from raycluster.errors import ConfigError

WEIGHTS = "open_clip_model.safetensors"
TOWERS = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def make_folder(folder: Path, preprocess: dict[str, Any] | None = None, image_size: int | tuple[int, int] = 32) -> Path:
    folder.mkdir(parents=True)
    towers = copy.deepcopy(TOWERS)
    towers["vision_cfg"]["image_size"] = image_size
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**copy.deepcopy(towers)).state_dict(), folder / WEIGHTS)
    description = {"model_cfg": towers, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> ClipEncoder:
    return ClipEncoder.load(resolve_encoder(local(folder), use_gpu=False), "cpu")


def local(folder: Path, **more: Any) -> EncoderConfig:
    return EncoderConfig(model=f"local-dir:{folder}", **more)


def fingerprint(folder: Path, **more: Any) -> str:
    return resolve_encoder(local(folder, **more), use_gpu=False).fingerprint


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A smooth picture with noise, so that another way of resizing gives other pixels."""
    rng = np.random.default_rng(width * height)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize((width, height))
    noisy = np.asarray(coarse) // 2 + rng.integers(0, 128, (height, width, 3), np.uint8)
    return Image.fromarray(noisy).convert(mode)


PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("image_size", [32, (32, 48)])
@pytest.mark.parametrize("more", [{"interpolation": "bicubic"}, {"interpolation": "bilinear", "fill_color": 128}])
def test_pictures_become_open_clips_own_embeddings(
    tmp_path: Path, resize_mode: str, image_size: int | tuple[int, int], more: dict[str, Any]
) -> None:
    made = make_folder(tmp_path / "m", {**PREPROCESS, "resize_mode": resize_mode, **more}, image_size)
    model, _, preprocess_val = open_clip.create_model_and_transforms(f"local-dir:{made}")
    spec = resolve_encoder(local(made), use_gpu=False)
    photos = [photo(64, 48), photo(20, 90), photo(300, 7), photo(1, 1), photo(32, 32)]
    pixels = np.stack([pil_transform(spec)(image) for image in photos])
    assert pixels.dtype == np.uint8
    assert pixels.shape == (5, *spec.pixel_shape)
    theirs = torch.stack([preprocess_val(image) for image in photos])
    scaled = (
        torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor(spec.mean).view(3, 1, 1)
    ) / torch.tensor(spec.std).view(3, 1, 1)
    torch.testing.assert_close(scaled, theirs, rtol=1e-5, atol=1e-5)
    found = ClipEncoder.load(spec, "cpu").encode_pixels(pixels)
    assert found.dtype == np.float16
    with torch.inference_mode():
        expected = model.eval().encode_image(theirs)
    # The only difference left is the rounding to float16.
    np.testing.assert_allclose(found, expected.half().numpy(), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_pictures_of_other_modes_are_converted_as_open_clip_does(folder: Path, mode: str) -> None:
    _, _, preprocess_val = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    spec = resolve_encoder(local(folder), use_gpu=False)
    pixels = torch.from_numpy(pil_transform(spec)(photo(50, 40, mode))).permute(2, 0, 1) / 255
    theirs = preprocess_val(photo(50, 40, mode))
    expected = theirs * torch.tensor(spec.std).view(3, 1, 1) + torch.tensor(spec.mean).view(3, 1, 1)
    torch.testing.assert_close(pixels, expected, rtol=1e-4, atol=1e-4)


def test_an_embedding_does_not_depend_on_the_batch_and_read_only_pixels_are_welcome(encoder: ClipEncoder) -> None:
    pixels = np.stack([pil_transform(encoder.spec)(photo(40 + i, 30)) for i in range(5)])
    pixels.flags.writeable = False
    whole = encoder.encode_pixels(pixels)
    alone = np.vstack([encoder.encode_pixels(pixels[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(whole, alone, rtol=2e-3, atol=1e-4)
    assert whole.shape == (5, encoder.spec.dim)


def test_half_precision_is_close_to_full(folder: Path, encoder: ClipEncoder) -> None:
    pixels = pil_transform(encoder.spec)(photo(40, 30))[None]
    half = ClipEncoder.load(resolve_encoder(local(folder, precision="bf16"), use_gpu=False), "cpu")
    assert half.model.visual.conv1.weight.dtype == torch.bfloat16
    full, rounded = (e.encode_pixels(pixels)[0].astype(np.float32) for e in (encoder, half))
    assert full @ rounded / np.linalg.norm(full) / np.linalg.norm(rounded) > 0.999
    texts, rounded_texts = (e.encode_texts(["a cat"])[0] for e in (encoder, half))
    assert texts @ rounded_texts / np.linalg.norm(texts) / np.linalg.norm(rounded_texts) > 0.999


def test_texts_are_open_clips_own_embeddings_in_any_batch(folder: Path, encoder: ClipEncoder) -> None:
    texts = ["a cat", "a photo of a dog", "word " * 100]
    found = encoder.encode_texts(texts)
    assert found.dtype == np.float32
    assert found.shape == (3, 16)
    assert np.array_equal(found, encoder.encode_texts(texts))
    np.testing.assert_allclose(found, np.vstack([encoder.encode_texts([text]) for text in texts]), atol=1e-5)
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    with torch.inference_mode():
        expected = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(texts))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_texts_are_cut_at_the_models_context_length(encoder: ClipEncoder) -> None:
    # The context has 20 tokens. The first and the last are marks, so 18 words fit.
    fits, longer, longest, shorter = (encoder.encode_texts(["cat " * n])[0] for n in (18, 19, 100, 17))
    assert np.array_equal(fits, longer)
    assert np.array_equal(fits, longest)
    assert not np.allclose(fits, shorter)


def test_the_fingerprint_follows_what_changes_embeddings_not_the_place(folder: Path, tmp_path: Path) -> None:
    original = fingerprint(folder)
    moved = shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(moved) == original
    assert fingerprint(moved, max_bytes=1) == original
    others = [
        fingerprint(folder, precision="bf16"),
        *(
            fingerprint(make_folder(tmp_path / name, preprocess))
            for name, preprocess in {
                "mean": {"mean": [0.1, 0.1, 0.1]},
                "std": {"std": [0.1, 0.1, 0.1]},
                "mode": {"resize_mode": "squash"},
                "interpolation": {"interpolation": "bilinear"},
            }.items()
        ),
        fingerprint(make_folder(tmp_path / "size", image_size=40)),
    ]
    weights = load_file(moved / WEIGHTS)
    weights["logit_scale"] = weights["logit_scale"] + 1e-3
    save_file(weights, moved / WEIGHTS)
    others.append(fingerprint(moved))
    assert len({original, *others}) == 1 + len(others)


def test_defaults_written_out_are_the_same_preprocessing(folder: Path, tmp_path: Path) -> None:
    spelled = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    made = make_folder(tmp_path / "spelled", {**spelled, "interpolation": "bicubic", "resize_mode": "shortest"})
    one, other = (resolve_encoder(local(f), use_gpu=False) for f in (folder, made))
    assert (one.mean, one.std, one.interpolation) == (other.mean, other.std, other.interpolation)
    assert pil_transform(one)(photo(50, 40)).tolist() == pil_transform(other)(photo(50, 40)).tolist()


def test_precision_is_bf16_on_a_gpu_and_fp32_on_a_cpu(folder: Path) -> None:
    assert resolve_encoder(local(folder), use_gpu=True).precision == "bf16"
    assert resolve_encoder(local(folder), use_gpu=False).precision == "fp32"
    assert resolve_encoder(local(folder, precision="fp16"), use_gpu=True).precision == "fp16"
    with pytest.raises(ConfigError, match=r"encoder\.precision: fp16 needs a GPU"):
        resolve_encoder(local(folder, precision="fp16"), use_gpu=False)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_checkpoint_file_equals_its_folder(
    folder: Path, encoder: ClipEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-of-the-tests", copy.deepcopy(TOWERS))
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": load_file(folder / WEIGHTS), "epoch": 3}, file)
    else:
        shutil.copy(folder / WEIGHTS, file)
    spec = resolve_encoder(EncoderConfig(model="tiny-of-the-tests", pretrained=str(file)), use_gpu=False)
    assert (spec.image_size, spec.dim, spec.mean) == ((32, 32), 16, encoder.spec.mean)
    if suffix == ".safetensors":
        assert spec.fingerprint == encoder.spec.fingerprint
    pixels = pil_transform(spec)(photo(50, 40))[None]
    loaded = ClipEncoder.load(spec, "cpu")
    assert np.array_equal(loaded.encode_pixels(pixels), encoder.encode_pixels(pixels))
    np.testing.assert_allclose(loaded.encode_texts(["a cat"]), encoder.encode_texts(["a cat"]), atol=1e-6)


def test_the_built_in_model_embeds_pictures_and_texts() -> None:
    spec = resolve_encoder(EncoderConfig(model="builtin"), use_gpu=False)
    encoder = ClipEncoder.load(spec, "cpu")
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    images = encoder.encode_pixels(np.stack([pil_transform(spec)(photo(90, 60)), pil_transform(spec)(photo(60, 60))]))
    texts = encoder.encode_texts(["a cat", "a dog", "a house"])
    assert (images.shape, texts.shape) == ((2, spec.dim), (3, spec.dim))
    assert np.isfinite(images).all()
    assert np.isfinite(texts).all()
    assert len(np.unique(texts.round(4), axis=0)) == 3


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
