"""The model folder: how it is written, found, verified and loaded.

A model folder holds these files:

- `model.json`, written last, with the sha256 of every other file;
- `heads.safetensors`, all that the method needs to predict;
- `novelty.safetensors`, training rows that outliers are told by;
- `snapshot.safetensors`, how the training set spread over the clusters, to detect drift;
- `clusters.json`, a name for each cluster;
- after fine-tuning `encoder.safetensors`, the state of the vision tower, which open_clip loads into `model.visual`;
- after fine-tuning `adapter.safetensors`, the part of the vision tower that was trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from raycluster.config import StorageConfig
from raycluster.errors import ArtifactError, ConfigError, MissingFileError
from raycluster.methods import registry
from raycluster.methods.base import Method
from raycluster.model.drift import Snapshot
from raycluster.model.model import Memory, Model
from raycluster.model.novelty import Novelty
from raycluster.model.record import FILES, FORMAT, ClusterNames, ModelRecord
from raycluster.section import validate
from raycluster.storage.location import Location, locate
from raycluster.tables.markers import MODEL_FOLDER, RunFolder

Part = TypeVar("Part")


def save_model(
    folder: Location,
    method: Method,
    memory: Memory,
    encoder: dict[str, Any],
    clusters: list[dict[str, Any]],
    facts: dict[str, Any],
    more: Mapping[str, bytes] | None = None,
) -> None:
    """Write a model folder.

    `encoder`: config (None for ready-made embeddings), precision, and fingerprint of the encoder before fine-tuning;
    `facts`: further keys of `model.json`; `more`: further files, by name.
    """
    files = {
        **(more or {}),
        "heads.safetensors": save({key: t.detach().cpu().contiguous() for key, t in method.state_dict().items()}),
        "novelty.safetensors": save({"rows": memory.novelty.rows.cpu().half().contiguous()}),
        "snapshot.safetensors": save(
            {name: torch.from_numpy(array) for name, array in asdict(memory.snapshot).items()}
        ),
        "clusters.json": (json.dumps(clusters, indent=1, ensure_ascii=False) + "\n").encode(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "model.json").write_json(
        {
            "format": FORMAT,
            "method": method.name,
            "constants": method.constants,
            "dim": method.dim,
            "n_clusters": method.n_clusters,
            "n_rows": method.n_rows,
            "scale": method.input_scale,
            "novelty": {"limit": memory.novelty.limit, "expected": memory.novelty.expected},
            "encoder": encoder,
            **facts,
            "versions": {package: version(package) for package in ("raycluster", "torch", "open_clip_torch")},
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        }
    )


def load_model(path: str | Path | Location, storage: StorageConfig | None = None, device: str = "cpu") -> Model:
    """Load a model for prediction from a run folder or its `model` folder (both mean the current model), or from a model folder.

    Raises :class:`ConfigError` if no model is there and :class:`ArtifactError` if a file is missing, is not the one that was
    saved, or does not hold what a model needs.
    """
    folder = model_folder(path if isinstance(path, Location) else locate(str(path), storage))
    return load_folder(folder, storage, device)


def load_folder(folder: Location, storage: StorageConfig | None = None, device: str = "cpu") -> Model:
    """Load the model from exactly this model folder. Raises :class:`ArtifactError` as :func:`load_model` does."""
    record = _read_record(folder)
    contents = {name: (folder / name).read_verified(record["sha256"][name]) for name in FILES}

    def parsed(name: str, parse: Callable[[bytes, dict[str, Any]], Part]) -> Part:
        try:
            return parse(contents[name], record)
        # The file has the recorded hash. If it still cannot be parsed, for whatever reason, this version did not write it.
        except (ConfigError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise _unusable(folder, name, error) from error

    method, novelty = parsed("heads.safetensors", _heads), parsed("novelty.safetensors", _novelty)
    then, clusters = parsed("snapshot.safetensors", _snapshot), parsed("clusters.json", _clusters)
    novelty = replace(novelty, rows=novelty.rows.to(device))
    return Model(method.to(device).eval(), novelty, then, record, clusters, folder, storage or StorageConfig(), device)


def _heads(content: bytes, record: dict[str, Any]) -> Method:
    dim, n_clusters, n_rows = (record[key] for key in ("dim", "n_clusters", "n_rows"))
    return registry.restore(record["method"], record["constants"], dim, n_clusters, n_rows, load(content))


def _novelty(content: bytes, record: dict[str, Any]) -> Novelty:
    rows = load(content)["rows"].float()
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != record["dim"]:
        raise ValueError(
            f"its rows have the shape {tuple(rows.shape)}, but an embedding of the model has {record['dim']} numbers"
        )
    return Novelty(rows, **record["novelty"])


def _snapshot(content: bytes, record: dict[str, Any]) -> Snapshot:
    then = Snapshot(**{name: tensor.numpy() for name, tensor in load(content).items()})
    if then.sizes.shape != (record["n_clusters"],) or then.confidence.ndim != 1 or not then.sizes.sum() > 0:
        raise ValueError(
            f"its sizes (shape {then.sizes.shape}) or confidences do not fit the model's {record['n_clusters']} clusters"
        )
    return then


def _clusters(content: bytes, record: dict[str, Any]) -> list[dict[str, Any]]:
    clusters: list[dict[str, Any]] = json.loads(content)
    validate({"clusters": clusters}, ClusterNames, "names")
    if len(clusters) != record["n_clusters"]:
        raise ValueError(f"it holds {len(clusters)} names, but the model has {record['n_clusters']} clusters")
    return clusters


def _unusable(folder: Location, name: str, error: Exception) -> ArtifactError:
    reason = " ".join(str(error).split())[:500] or "it is empty"
    return ArtifactError(
        f"{folder.uri}/{name} is damaged ({reason}); restore it, or delete the folder _stages of its run and run again"
    )


def _read_record(folder: Location) -> dict[str, Any]:
    """Return `model.json`, checked: every key that is read later is there and has its type."""
    try:
        record = json.loads((folder / "model.json").read_bytes())
        if not isinstance(record, dict) or not isinstance(record.get("format"), int):
            raise ValueError("it has no key `format` with a number")
    except FileNotFoundError:
        raise MissingFileError(
            f"{folder.uri}/model.json is missing; restore it, or delete the folder _stages of its run and run again"
        ) from None
    except ValueError as error:
        raise _unusable(folder, "model.json", error) from None
    if record["format"] != FORMAT:
        raise ArtifactError(
            f"{folder.uri}: the model has the format {record['format']}, but this raycluster reads {FORMAT}; "
            "install the version that wrote it, or train again"
        )
    try:
        validate(record, ModelRecord, "its keys")
    except ConfigError as error:
        raise _unusable(folder, "model.json", error) from None
    return record


def model_folder(place: Location) -> Location:
    """Return `place` if it is a model folder, or the current model folder of the run that it belongs to.

    Raises :class:`ConfigError` if it is neither.
    """
    if (place / "model.json").exists():
        return place
    # `<run>/model` holds a folder for each model that was made there.
    root = place.parent if place.name == MODEL_FOLDER else place
    marker = RunFolder(root).model()
    if marker is None:
        raise ConfigError(
            f"{place.uri} is neither a run folder with a finished model nor a model folder; run `raycluster train` first"
        )
    return root / marker.path
