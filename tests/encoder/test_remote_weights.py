"""Test that weights in a bucket are used like those on the disk, and that they are copied once."""

from __future__ import annotations

import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from raycluster.config import EncoderConfig, StorageConfig
from raycluster.encoder.clip import ClipEncoder, resolve_encoder
from raycluster.encoder.weights import CONFIG_FILE, find_weights
from raycluster.errors import ConfigError
from raycluster.storage.location import Location, locate

HERE = Path(str(files("raycluster.demo") / "clip"))
CHECKPOINT = "open_clip_model.safetensors"


@pytest.fixture
def folder(s3: StorageConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Location:
    """The built-in model in a bucket, while the cache of this machine is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = locate(f"s3://raycluster-test/weights-{time.time_ns()}", s3)
    for name in (CONFIG_FILE, CHECKPOINT):
        (place / name).write_bytes((HERE / name).read_bytes())
    return place


def copies(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob(CHECKPOINT))


def test_a_folder_in_a_bucket_is_the_same_encoder_and_is_copied_once(folder: Location, tmp_path: Path) -> None:
    config = EncoderConfig(model=folder.uri)
    spec = resolve_encoder(config, False, folder.options)
    local = resolve_encoder(EncoderConfig(model=f"local-dir:{HERE}"), False)
    assert (spec.model, spec.pretrained, spec.fingerprint) == (folder.uri, None, local.fingerprint)
    (copy,) = copies(tmp_path)
    before = copy.stat().st_ino
    pixels = np.full((2, *spec.pixel_shape), 99, np.uint8)
    encoder = ClipEncoder.load(spec, "cpu")
    assert copy.stat().st_ino == before
    np.testing.assert_array_equal(encoder.encode_pixels(pixels), ClipEncoder.load(local, "cpu").encode_pixels(pixels))
    assert encoder.encode_texts(["a photo"]).shape == (1, spec.dim)


def test_a_checkpoint_in_a_bucket(folder: Location, tmp_path: Path) -> None:
    uri = (folder / CHECKPOINT).uri
    weights = find_weights(EncoderConfig(model="ViT-B-32", pretrained=uri), folder.options)
    assert (weights.model, weights.pretrained) == ("ViT-B-32", str(copies(tmp_path)[0]))
    assert weights.file.read_bytes() == (HERE / CHECKPOINT).read_bytes()
    spec = resolve_encoder(EncoderConfig(model="ViT-B-32", pretrained=uri), False, folder.options)
    assert spec.pretrained == uri


def test_weights_that_change_under_a_run_are_refused(folder: Location, tmp_path: Path) -> None:
    spec = resolve_encoder(EncoderConfig(model=folder.uri), False, folder.options)
    other = {
        name: np.asarray(value + 1) if name == "logit_scale" else value
        for name, value in load((HERE / CHECKPOINT).read_bytes()).items()
    }
    (folder / CHECKPOINT).write_bytes(save(other, {"format": "pt"}))
    with pytest.raises(ConfigError, match="is not the checkpoint that this run began with"):
        ClipEncoder.load(spec, "cpu")
    assert len(copies(tmp_path)) == 2
    changed = resolve_encoder(EncoderConfig(model=folder.uri), False, folder.options)
    assert changed.fingerprint != spec.fingerprint
    ClipEncoder.load(changed, "cpu")


def test_what_is_not_there_is_named_with_its_field(folder: Location) -> None:
    with pytest.raises(ConfigError, match=r"^encoder\.model: nothing is at s3://.*-none"):
        find_weights(EncoderConfig(model=f"{folder.uri}-none"), folder.options)
    with pytest.raises(ConfigError, match=r"^encoder\.pretrained: nothing is at s3://.*none\.pt"):
        find_weights(EncoderConfig(model="ViT-B-32", pretrained=f"{folder.uri}/none.pt"), folder.options)
    nobody = folder.options.model_copy(update={"anonymous": True})
    with pytest.raises(ConfigError, match=r"^encoder\.model: s3://.* cannot be read"):
        find_weights(EncoderConfig(model=folder.uri), nobody)
    (folder / CONFIG_FILE).delete()
    with pytest.raises(ConfigError, match=f"holds no {CONFIG_FILE}"):
        find_weights(EncoderConfig(model=folder.uri), folder.options)
