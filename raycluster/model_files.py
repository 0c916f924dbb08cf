"""The model folder: written, found, verified, loaded.

A model folder holds `model.json` (written last, with the sha256 of every other file), `heads.safetensors` (all that the
method needs to predict), `novelty.safetensors` (training rows, by which outliers are known), `snapshot.safetensors` (how the training
set fell to the clusters, to see drift) and `clusters.json` (a name for each cluster); after fine-tuning also `encoder.safetensors`, the
state of the vision tower, which open_clip loads into `model.visual`, and `adapter.safetensors`, what was trained of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from raycluster.clustering.novelty import Novelty
from raycluster.config import StorageConfig
from raycluster.drift import Snapshot
from raycluster.errors import ArtifactError, ConfigError
from raycluster.methods import registry
from raycluster.methods.base import Method
from raycluster.model import Memory, Model
from raycluster.run_folder import FOLDERS, RunFolder
from raycluster.storage import Location, locate

FORMAT = 2
_FILES = ("heads.safetensors", "novelty.safetensors", "snapshot.safetensors", "clusters.json")


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

    `encoder`: config (None for ready-made embeddings), precision, fingerprint of the encoder as it came; `facts` go along;
    `more`: further files.
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
    """Load a model for prediction from a run's output folder or its `model` folder (the current model), or from a model folder itself.

    Raises :class:`ConfigError` if no model is there and :class:`ArtifactError` if a file is not the one that was saved.
    """
    folder = model_folder(path if isinstance(path, Location) else locate(str(path), storage))
    record = _read_record(folder)
    contents = {name: (folder / name).read_verified(record["sha256"][name]) for name in _FILES}
    method = registry.restore(
        record["method"],
        record["constants"],
        record["dim"],
        record["n_clusters"],
        record["n_rows"],
        load(contents["heads.safetensors"]),
    )
    novelty = Novelty(load(contents["novelty.safetensors"])["rows"].float().to(device), **record["novelty"])
    then = Snapshot(**{name: tensor.numpy() for name, tensor in load(contents["snapshot.safetensors"]).items()})
    names = json.loads(contents["clusters.json"])
    return Model(method.to(device).eval(), novelty, then, record, names, folder, storage or StorageConfig(), device)


def _read_record(folder: Location) -> dict[str, Any]:
    try:
        record = json.loads((folder / "model.json").read_bytes())
        known = record["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder.uri}/model.json is damaged ({error}); restore it, or delete the folder and train again"
        ) from None
    if known != FORMAT:
        raise ArtifactError(
            f"{folder.uri}: model format {known}, this raycluster reads {FORMAT}; install the version that wrote it"
        )
    return record


def model_folder(place: Location) -> Location:
    """The model folder that `place` is, or the current one of the run folder that it is; raises :class:`ConfigError` if neither."""
    if (place / "model.json").exists():
        return place
    # `<run>/model` holds a folder for each model that was made there.
    root = place.parent if place.name == FOLDERS["train"] else place
    marker = RunFolder(root).model()
    if marker is None:
        raise ConfigError(
            f"{place.uri}: neither a run folder with a finished model nor a model folder; run `raycluster train` first"
        )
    return root / marker.path
