"""Test that a damaged model folder gives a clear error wherever a model is loaded, whatever the damage is."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_kit import CLUSTERS, DIM, small_model
from PIL import Image
from safetensors.torch import save

import raycluster
from raycluster.cli import main
from raycluster.config import EncoderConfig, StorageConfig
from raycluster.encoder.clip import resolve_encoder
from raycluster.errors import ArtifactError, ConfigError
from raycluster.model.record import FILES, ModelRecord
from raycluster.serving.live_model import Loaded


def builtin_encoder() -> dict[str, Any]:
    config = EncoderConfig(model="builtin", precision="fp32", max_pixels=10_000)
    spec = resolve_encoder(config, use_gpu=False)
    return {"config": config.model_dump(mode="json"), "precision": "fp32", "fingerprint": spec.fingerprint}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("good") / "model", builtin_encoder())


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy of the model folder, which a test may damage."""
    return Path(shutil.copytree(good, tmp_path / "model"))


def refused_everywhere(folder: Path, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Check that every function and command that loads a model refuses this folder with one error that says `reason`."""
    loads: list[Callable[[], object]] = [
        lambda: raycluster.load_model(folder),
        lambda: Loaded.load(str(folder), StorageConfig(), "cpu", 1),
    ]
    for load in loads:
        with pytest.raises(ArtifactError, match=reason):
            load()
    options = ["--images", str(folder), "--output", str(folder.parent / "out")]
    assert main(["assign", "--model", str(folder), *options]) == 4
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    assert json.loads(said.out)["status"] == "failed"
    with pytest.raises(ArtifactError, match=reason):
        raise ArtifactError(json.loads(said.out)["error"])


REQUIRED = [
    *(["format"], *([name] for name, field in ModelRecord.model_fields.items() if field.is_required())),
    *(["novelty", name] for name in ("limit", "expected")),
    *(["encoder", name] for name in ("config", "precision", "fingerprint")),
    ["training", "history"],
    *(["sha256", name] for name in FILES),
]
ODD = [*REQUIRED, *(["encoder", "config", name] for name in EncoderConfig.model_fields if name != "pretrained")]


def changed(folder: Path, path: list[str], change: Callable[[dict[str, Any], str], None]) -> None:
    """Rewrite model.json with one of its keys changed."""
    record = json.loads((folder / "model.json").read_text())
    inner = record
    for name in path[:-1]:
        inner = inner[name]
    change(inner, path[-1])
    (folder / "model.json").write_text(json.dumps(record))


@pytest.mark.parametrize("path", REQUIRED, ids=".".join)
def test_a_key_that_is_missing_is_named(folder: Path, path: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    changed(folder, path, lambda record, key: record.pop(key))
    refused_everywhere(folder, rf"model\.json is damaged .*{path[-1].split('.')[0]}.*restore it", capfd)


VALUES = {"list": [5], "null": None, "table": {"a": None}}
CASES = [(path, kind) for path in ODD for kind in VALUES if (path, kind) != (["constants"], "table")]


@pytest.mark.parametrize(
    ("path", "kind"), CASES, ids=lambda value: value if isinstance(value, str) else ".".join(value)
)
def test_a_key_of_an_odd_kind_is_named(
    folder: Path, path: list[str], kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    changed(folder, path, lambda record, key: record.update({key: VALUES[kind]}))
    refused_everywhere(folder, r"model\.json is damaged .*restore it", capfd)


WRONG: list[tuple[list[str], object, str]] = [
    (["format"], 1, "the model has the format 1, but this raycluster reads 2; install the version that wrote it"),
    (["method"], "nothing", r"heads\.safetensors is damaged .*unknown method"),
    (["method"], "seic", r"heads\.safetensors is damaged"),
    (["constants"], {"nothing": 1}, r"heads\.safetensors is damaged .*unknown key `nothing`"),
    (["constants"], {"restarts": 0}, r"heads\.safetensors is damaged .*restarts"),
    (["dim"], DIM + 1, r"heads\.safetensors is damaged .*size mismatch"),
    (["dim"], 0, r"model\.json is damaged .*dim"),
    (["dim"], str(DIM), r"model\.json is damaged .*dim"),
    (["n_clusters"], CLUSTERS + 1, r"heads\.safetensors is damaged .*size mismatch"),
    (["n_clusters"], 1, r"model\.json is damaged .*n_clusters"),
    (["finetune"], {}, r"model\.json is damaged .*sha256.* does not name encoder\.safetensors"),
    *((["sha256", name], "0" * 64, rf"{name} is not the file") for name in FILES),
]


@pytest.mark.parametrize(("path", "value", "reason"), WRONG, ids=lambda value: str(value)[:30])
def test_a_value_that_does_not_fit_is_named(
    folder: Path, path: list[str], value: object, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    changed(folder, path, lambda record, key: record.update({key: value}))
    refused_everywhere(folder, reason, capfd)


@pytest.mark.parametrize("content", ["", "{", "[]", "5", "null", '"text"', "\x00", "{}"])
def test_a_record_that_is_none(folder: Path, content: str, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "model.json").write_text(content)
    refused_everywhere(folder, r"model\.json is damaged .*restore it", capfd)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_cut_or_foreign(folder: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    content = (folder / name).read_bytes()
    for damaged in (content[:-1], b"", content + b"0"):
        (folder / name).write_bytes(damaged)
        refused_everywhere(folder, rf"{name} is not the file that model\.json describes", capfd)
    (folder / name).unlink()
    refused_everywhere(folder, rf"{name} is missing; restore it", capfd)


def unfit() -> Iterator[tuple[str, bytes]]:
    """Names and contents of files that do not belong to a model. The test makes their hashes right."""
    for name in FILES:
        yield name, b""
        yield name, b"\x00\xff" * 50
    for name in FILES[:3]:
        yield name, save({"other": torch.zeros(2)})
    for shape in ((4, DIM + 1), (0, DIM), (DIM,)):
        yield "novelty.safetensors", save({"rows": torch.zeros(shape)})
    confidence = torch.zeros(4)
    for sizes in (torch.ones(CLUSTERS + 1), torch.zeros(CLUSTERS), torch.ones(CLUSTERS, 2)):
        yield "snapshot.safetensors", save({"sizes": sizes.long(), "confidence": confidence})
    yield "snapshot.safetensors", save({"sizes": torch.ones(CLUSTERS).long()})
    names = [{"name": "a", "nouns": []}] * CLUSTERS
    for clusters in ({}, [], names[1:], [*names, names[0]], [*names[1:], {"nouns": []}], [*names[1:], {"name": 5}], 5):
        yield "clusters.json", json.dumps(clusters).encode()


@pytest.mark.parametrize(("name", "content"), list(unfit()))
def test_a_file_that_does_not_hold_what_a_model_needs(
    folder: Path, name: str, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / name).write_bytes(content)
    changed(folder, ["sha256", name], lambda record, key: record.update({key: hashlib.sha256(content).hexdigest()}))
    refused_everywhere(folder, rf"{name} is damaged .*restore it", capfd)


def test_a_tuned_encoder_that_is_missing_or_damaged(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model", builtin_encoder(), {"encoder.safetensors": b"weights"}, finetune={})
    raycluster.load_model(folder)  # the encoder is read at first use
    (folder / "encoder.safetensors").write_bytes(b"other")
    with pytest.raises(ArtifactError, match=r"encoder\.safetensors is not the file"):
        Loaded.load(str(folder), StorageConfig(), "cpu", 1)
    (folder / "encoder.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"encoder\.safetensors is missing"):
        Loaded.load(str(folder), StorageConfig(), "cpu", 1)


def test_the_undamaged_model_is_loaded_by_every_door(good: Path) -> None:
    assert raycluster.load_model(good).method.name == "kmeans"
    assert Loaded.load(str(good), StorageConfig(), "cpu", 1).info.n_clusters == CLUSTERS


def test_keys_that_this_version_does_not_know_are_left_alone(folder: Path) -> None:
    changed(folder, ["later"], lambda record, key: record.update({key: 1}))
    assert raycluster.load_model(folder).record["later"] == 1


def test_pictures_for_a_model_of_embeddings_are_refused_in_words(tmp_path: Path) -> None:
    model = raycluster.load_model(small_model(tmp_path / "model"))
    for pictures in ([str(tmp_path / "a.jpg")], [b"picture"], [Image.new("RGB", (8, 8))]):
        with pytest.raises(ConfigError, match="was trained on ready-made embeddings and cannot read pictures; embed"):
            model.predict(pictures)
    assert model.predict(np.ones((1, DIM), np.float16)).status == ["ok"]


def test_an_image_of_too_many_pixels_is_not_decoded(good: Path) -> None:
    """Pillow's own limit is off (:mod:`raycluster.images.decode`), so images that the caller opened are checked too."""
    images = [Image.new("RGB", (100, 100)), Image.new("RGB", (101, 100))]
    predicted = raycluster.load_model(good).predict(images)
    assert predicted.status == ["ok", "too_large"]
    assert "more than max_pixels = 10000" in str(predicted.error[1])
