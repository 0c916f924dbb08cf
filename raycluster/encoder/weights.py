"""Find the weights of an encoder before any costly work: a hub tag, a checkpoint, an open_clip folder, or the built-in model.

open_clip takes seconds to import, so functions import it when they need it: a process that works with ready-made embeddings starts without it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from importlib.resources import files
from pathlib import Path
from typing import Any

from filelock import FileLock

from raycluster.config import EncoderConfig, StorageConfig
from raycluster.encoder.remote_weights import local_copy
from raycluster.errors import ConfigError

log = logging.getLogger(__name__)

CONFIG_FILE = "open_clip_config.json"


@dataclass(frozen=True)
class Weights:
    """A model that can be loaded: the arguments for open_clip, and the preprocessing and activation that the weights expect."""

    model: str
    """Name for `open_clip.create_model`: an architecture or `local-dir:<folder>`."""
    pretrained: str | None
    """Weight tag or path of a checkpoint; None for a folder."""
    file: Path
    """The checkpoint on this machine."""
    model_config: dict[str, Any]
    preprocess: dict[str, Any]
    """Mean, std, interpolation and resize mode of the weights' training, as far as they differ from open_clip's defaults."""
    force_quick_gelu: bool = False

    @property
    def sha256(self) -> str:
        """Hash of the checkpoint's content."""
        with self.file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def find_weights(config: EncoderConfig, storage: StorageConfig | None = None) -> Weights:
    """Find the weights of `encoder:`; weights of a hub tag or an `s3://` address are downloaded once.

    Raises :class:`ConfigError` that names the remedy.
    """
    if config.model == "builtin":
        return _folder(str(files("raycluster.demo") / "clip"))
    if config.model.startswith("local-dir:"):
        return _folder(config.model.removeprefix("local-dir:"))
    if config.model.startswith("s3://"):
        return _folder(str(local_copy(config.model, storage, "encoder.model")))
    pretrained = config.pretrained or ""
    if pretrained.startswith("s3://"):
        pretrained = str(local_copy(pretrained, storage, "encoder.pretrained"))
    return _architecture(config.model, pretrained)


def _folder(name: str) -> Weights:
    from open_clip.factory import _find_checkpoint_in_dir

    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"encoder.model: the folder {folder} does not exist; give the path of an open_clip folder after `local-dir:`"
        )
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(
            f"encoder.model: {folder} holds no {CONFIG_FILE}; give an open_clip model folder, which has this file"
        )
    try:
        description = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        model_config = description["model_cfg"]
        if not isinstance(model_config["embed_dim"], int) or not isinstance(model_config["vision_cfg"], dict):
            raise TypeError("embed_dim is not an integer, or vision_cfg is not a table")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"encoder.model: {folder / CONFIG_FILE} is not an open_clip configuration ({error}); restore it, or give another folder"
        ) from None
    checkpoint = _find_checkpoint_in_dir(folder)
    if checkpoint is None:
        raise ConfigError(f"encoder.model: {folder} holds no weights; add open_clip_model.safetensors")
    return Weights(
        f"local-dir:{folder.resolve()}", None, Path(checkpoint), model_config, description.get("preprocess_cfg", {})
    )


def _architecture(model: str, pretrained: str) -> Weights:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    model = model.replace("/", "-")
    if model not in open_clip.list_models():
        close = difflib.get_close_matches(model, open_clip.list_models(), n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(close)}?" if close else "."
        raise ConfigError(
            f"encoder.model: open_clip knows no architecture {model!r}{hint} A folder is given as `local-dir:<path>`"
        )
    tag = get_pretrained_cfg(model, pretrained)
    if not tag:
        file = Path(pretrained).expanduser()
        if not file.is_file():
            tags = ", ".join(list_pretrained_tags_by_model(model)) or "none"
            raise ConfigError(
                f"encoder.pretrained: {pretrained!r} is neither a checkpoint file nor a weight tag of {model}; its tags are {tags}"
            )
        log.info("encoder: %s does not say which activation it was trained with; that of %s is used", file, model)
        return Weights(model, str(file.resolve()), file.resolve(), open_clip.get_model_config(model), {})
    model, force = matching_activation(model, pretrained, bool(tag.get("quick_gelu", False)))
    checkpoint = _download(model, pretrained, tag)
    return Weights(model, pretrained, checkpoint, open_clip.get_model_config(model), tag, force)


def matching_activation(model: str, pretrained: str, weights_use_quick_gelu: bool) -> tuple[str, bool]:
    """Return the architecture with the activation that the weights were trained with, and whether to force QuickGELU.

    open_clip only warns of a mismatch, and the embeddings are then worse. The best-known case is `ViT-B-32` with the weights `openai`,
    which use QuickGELU. Raises :class:`ConfigError` where there is no architecture to switch to.
    """
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    has_quick_gelu = bool((open_clip.get_model_config(model) or {}).get("quick_gelu", False))
    if has_quick_gelu == weights_use_quick_gelu:
        return model, False
    other = f"{model}-quickgelu" if weights_use_quick_gelu else model.removesuffix("-quickgelu")
    if other != model and other in open_clip.list_models() and get_pretrained_cfg(other, pretrained):
        log.warning("encoder: the weights %s were trained as %s, which is used instead of %s", pretrained, other, model)
        return other, False
    if weights_use_quick_gelu:
        log.warning(
            "encoder: the weights %s were trained with QuickGELU, which is switched on in %s", pretrained, model
        )
        return model, True
    raise ConfigError(
        f"encoder: the weights {pretrained!r} were trained without QuickGELU, but {model} has it; choose another model"
    )


def _download(model: str, pretrained: str, tag: dict[str, Any]) -> Path:
    """Download the weights with open_clip's own code, one process of a machine at a time, because its URL download is not atomic."""
    from open_clip.pretrained import download_pretrained

    _check_reachable(model, pretrained, tag)
    lock = (
        Path(tempfile.gettempdir())
        / f"raycluster-{hashlib.sha256(f'{model} {pretrained}'.encode()).hexdigest()[:16]}.lock"
    )
    try:
        with FileLock(lock):
            return Path(download_pretrained(tag))
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreachable(model, pretrained, error) from None


def _check_reachable(model: str, pretrained: str, tag: dict[str, Any]) -> None:
    """Check that the hub answers before its client is used: without a network, the client retries for most of a minute."""
    from huggingface_hub import constants, try_to_load_from_cache

    repository, _, name = tag.get("hf_hub", "").rpartition("/")
    names = [name] if name else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    names += [name.rsplit(".", 1)[0] + ".safetensors"] if name else []
    if not repository or any(isinstance(try_to_load_from_cache(repository, each), str) for each in names):
        return
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=10).close()
    except urllib.error.HTTPError:
        return  # the hub answers; its own client handles the error
    except (OSError, ValueError, HTTPException) as error:
        raise _unreachable(model, pretrained, error) from None


def _unreachable(model: str, pretrained: str, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())[:300]
    return ConfigError(
        f"encoder: the weights {pretrained!r} of {model} are not on this machine and could not be downloaded ({reason}); "
        "connect to the network, point HF_HOME to a cache that holds them or HF_ENDPOINT to a mirror, or give a checkpoint "
        "file as `pretrained` or an open_clip folder as `model: local-dir:<path>`"
    )
