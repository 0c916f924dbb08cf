"""Test what find_weights finds or refuses for every kind of `encoder:` section. No model is built."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest

from raycluster.config import EncoderConfig
from raycluster.encoder.weights import find_weights, matching_activation
from raycluster.errors import ConfigError

TOWERS = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 2}, "text_cfg": {"width": 32}}


def folder(path: Path, description: object, *files: str) -> EncoderConfig:
    path.mkdir(exist_ok=True)
    (path / "open_clip_config.json").write_text(
        description if isinstance(description, str) else json.dumps(description)
    )
    for name in files:
        (path / name).write_bytes(name.encode())
    return EncoderConfig(model=f"local-dir:{path}")


def refusal(config: EncoderConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        find_weights(config)
    return str(caught.value)


def test_a_folder_gives_its_checkpoint_and_its_preprocessing(tmp_path: Path) -> None:
    preprocess = {"mean": [0.5, 0.5, 0.5]}
    config = folder(
        tmp_path, {"model_cfg": TOWERS, "preprocess_cfg": preprocess}, "other.bin", "open_clip_model.safetensors"
    )
    weights = find_weights(config)
    assert (weights.model, weights.pretrained) == (f"local-dir:{tmp_path}", None)
    assert (weights.model_config, weights.preprocess) == (TOWERS, preprocess)
    assert weights.file == tmp_path / "open_clip_model.safetensors"
    assert weights.sha256 == hashlib.sha256(b"open_clip_model.safetensors").hexdigest()


def test_the_built_in_model_is_a_folder_of_the_package() -> None:
    weights = find_weights(EncoderConfig(model="builtin"))
    assert weights.file.name == "open_clip_model.safetensors"
    assert weights.model_config["embed_dim"] == 96


@pytest.mark.parametrize(
    "description",
    [
        "not json",
        "[]",
        "null",
        '"text"',
        "{}",
        '{"model_cfg": null}',
        '{"model_cfg": 3}',
        '{"model_cfg": {}}',
        '{"model_cfg": {"embed_dim": "16", "vision_cfg": {}}}',
        '{"model_cfg": {"embed_dim": 16, "vision_cfg": 3}}',
    ],
)
def test_a_folder_with_another_kind_of_configuration_is_named(tmp_path: Path, description: str) -> None:
    message = refusal(folder(tmp_path, description, "open_clip_model.safetensors"))
    assert message.startswith(f"encoder.model: {tmp_path / 'open_clip_config.json'} is not an open_clip configuration")


def test_folders_that_lack_something_are_named(tmp_path: Path) -> None:
    missing = EncoderConfig(model=f"local-dir:{tmp_path / 'missing'}")
    assert f"the folder {tmp_path / 'missing'} does not exist" in refusal(missing)
    assert "holds no open_clip_config.json" in refusal(EncoderConfig(model=f"local-dir:{tmp_path}"))
    assert "holds no weights" in refusal(folder(tmp_path, {"model_cfg": TOWERS}))


def test_an_unknown_architecture_is_answered_with_its_likes() -> None:
    near = refusal(EncoderConfig(model="ViT-B-33", pretrained="openai"))
    assert "knows no architecture 'ViT-B-33'; did you mean ViT-B-32" in near
    far = refusal(EncoderConfig(model="§§§", pretrained="openai"))
    assert far == "encoder.model: open_clip knows no architecture '§§§'. A folder is given as `local-dir:<path>`"


def test_a_folder_is_no_checkpoint_and_an_unknown_tag_is_answered_with_the_known(tmp_path: Path) -> None:
    for wrong in (str(tmp_path), "openia"):
        message = refusal(EncoderConfig(model="RN50", pretrained=wrong))
        assert f"encoder.pretrained: {wrong!r} is neither a checkpoint file nor a weight tag of RN50" in message
        assert "its tags are openai, yfcc15m" in message


def test_a_checkpoint_file_keeps_the_architecture_it_was_given_with(tmp_path: Path) -> None:
    file = tmp_path / "mine.pt"
    file.write_bytes(b"weights")
    # OpenAI writes its names with a slash.
    for name in ("ViT-B/32", "ViT-B-32-quickgelu"):
        weights = find_weights(EncoderConfig(model=name, pretrained=str(file)))
        assert (weights.model, weights.pretrained) == (name.replace("/", "-"), str(file))
        assert weights.file == file
        assert not weights.force_quick_gelu


@pytest.mark.parametrize(
    ("model", "pretrained", "quick", "used"),
    [
        ("ViT-B-32", "openai", True, "ViT-B-32-quickgelu"),
        ("ViT-B-32-quickgelu", "openai", True, "ViT-B-32-quickgelu"),
        ("ViT-B-32", "laion2b_s34b_b79k", False, "ViT-B-32"),
        ("ViT-L-14", "metaclip_400m", True, "ViT-L-14-quickgelu"),
    ],
)
def test_a_quickgelu_mismatch_is_corrected(model: str, pretrained: str, quick: bool, used: str) -> None:
    assert open_clip.pretrained.get_pretrained_cfg(model, pretrained).get("quick_gelu", False) is quick
    assert matching_activation(model, pretrained, quick) == (used, False)


def test_a_mismatch_without_a_twin_is_refused() -> None:
    with pytest.raises(ConfigError, match="were trained without QuickGELU, but ViT-B-32-quickgelu has it"):
        matching_activation("ViT-B-32-quickgelu", "no_such_tag", False)


def test_quickgelu_is_forced_where_no_twin_has_the_weights() -> None:
    model, tag = "RN50", "no_such_tag"
    assert matching_activation(model, tag, True) == (model, True)


def test_every_published_tag_resolves_to_its_own_activation() -> None:
    checked = 0
    for model, tag in open_clip.list_pretrained():
        quick = bool((open_clip.pretrained.get_pretrained_cfg(model, tag) or {}).get("quick_gelu", False))
        if (open_clip.get_model_config(model) or {}).get("quick_gelu", False) and not quick:
            continue  # refused or switched; other tests name these models
        used, forced = matching_activation(model, tag, quick)
        has = bool((open_clip.get_model_config(used) or {}).get("quick_gelu", False))
        assert (has or forced) == quick, (model, tag)
        assert open_clip.pretrained.get_pretrained_cfg(used, tag), (model, tag)
        checked += 1
    assert checked > 50


@pytest.fixture
def nonsense() -> Iterator[str]:
    """URL of a server that speaks no HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join(timeout=5)


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "mirror-without-scheme", "http://"])
def test_weights_out_of_reach_fail_soon_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, empty_cache: Path, endpoint: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    start = time.monotonic()
    message = refusal(EncoderConfig(model="ViT-B-32-quickgelu", pretrained="openai"))
    assert time.monotonic() - start < 20
    assert "the weights 'openai' of ViT-B-32-quickgelu are not on this machine" in message
    for remedy in ("HF_HOME", "HF_ENDPOINT", "`pretrained`", "local-dir:<path>"):
        assert remedy in message


def test_a_hub_that_speaks_no_http_is_out_of_reach_too(
    monkeypatch: pytest.MonkeyPatch, empty_cache: Path, nonsense: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nonsense)
    assert "could not be downloaded" in refusal(EncoderConfig(model="ViT-B-32-quickgelu", pretrained="openai"))


def test_weights_in_the_cache_need_no_network(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    commit = "a" * 40
    repository = empty_cache / "models--timm--vit_base_patch32_clip_224.openai"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    file = repository / "snapshots" / commit / "open_clip_model.safetensors"
    file.write_bytes(b"weights")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    # This is the usual mistake: these weights were trained with QuickGELU, which the plain architecture does not have.
    weights = find_weights(EncoderConfig(model="ViT-B-32", pretrained="openai"))
    assert (weights.model, weights.pretrained, weights.file) == ("ViT-B-32-quickgelu", "openai", file)
    assert tuple(weights.preprocess["mean"]) == open_clip.OPENAI_DATASET_MEAN
