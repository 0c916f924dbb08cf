"""The servable model: save, load, verify, predict.

A model folder holds `model.json` (written last, with the sha256 of every other file), `heads.safetensors` (all that the
method needs to predict), `novelty.safetensors` (training rows, by which outliers are known), `snapshot.safetensors` (how the training
set fell to the clusters, to see drift) and `clusters.json` (a name for each cluster); after fine-tuning also `encoder.safetensors`, the
state of the vision tower, which open_clip loads into `model.visual`, and `adapter.safetensors`, what was trained of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load, save

from raycluster.clustering.novelty import Novelty, fit_novelty
from raycluster.config import EncoderConfig, StorageConfig, validate
from raycluster.drift import Snapshot, snapshot
from raycluster.errors import ArtifactError, ConfigError
from raycluster.methods import registry
from raycluster.methods.base import Method
from raycluster.run_folder import FOLDERS, RunFolder
from raycluster.storage import Location, locate

if TYPE_CHECKING:
    from PIL.Image import Image

    from raycluster.encoder.clip import ClipEncoder, EncoderSpec

FORMAT = 2
ENCODER_FILE = "encoder.safetensors"
_FILES = ("heads.safetensors", "novelty.safetensors", "snapshot.safetensors", "clusters.json")
CHUNK = 16_384
"""Rows whose probabilities are held at once."""


@dataclass(frozen=True)
class Predictions:
    """What the model says of n pictures; rows whose status is not `ok` hold cluster -1 and NaN."""

    cluster: np.ndarray
    """int32 [n]."""
    name: list[str | None]
    """Name of the cluster."""
    confidence: np.ndarray
    """float32 [n], the largest probability."""
    margin: np.ndarray
    """float32 [n], largest minus second largest probability."""
    runner_up: np.ndarray
    """int32 [n], the second most probable cluster."""
    outlier: np.ndarray
    """bool [n], whether the picture is unlike anything the model was trained on; False where the status is not `ok`."""
    status: list[str]
    """`ok`, or why there is no prediction (the statuses of the manifest)."""
    error: list[str | None]
    """The reason in words where the status is not `ok`."""


def probabilities(method: Method, embeddings: np.ndarray) -> torch.Tensor:
    """[n, d] embeddings as the encoder gives them → [n, C] float32 probabilities.

    The one place where embeddings meet the heads, for batch and serving alike: float16 first, as the table stores them.
    """
    return method.predict(_rounded(embeddings).to(next(iter(method.state_dict().values())).device)).cpu()


def outliers(novelty: Novelty, embeddings: np.ndarray) -> np.ndarray:
    """[n, d] embeddings as the encoder gives them → bool [n]: unlike anything the model was trained on.

    Rounded as in :func:`probabilities`, and likewise the same for batch and serving.
    """
    return novelty.flags(_rounded(embeddings).to(novelty.rows.device)).cpu().numpy()


def _rounded(embeddings: np.ndarray) -> torch.Tensor:
    # A copy: tables hand out read-only arrays, of which torch would warn.
    return torch.from_numpy(np.array(embeddings, dtype=np.float16, order="C")).float()


def top_two(p: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """[n, C] probabilities → cluster int32, confidence float32, margin float32, runner-up int32, each [n]."""
    values, indices = p.topk(2, dim=1)
    clusters, confidence = indices.to(torch.int32).numpy(), values.numpy()
    return clusters[:, 0], confidence[:, 0], confidence[:, 0] - confidence[:, 1], clusters[:, 1]


@dataclass(frozen=True)
class Memory:
    """What a model keeps of the rows it was trained on."""

    novelty: Novelty
    snapshot: Snapshot


def remember(method: Method, embeddings: np.ndarray) -> tuple[Memory, np.ndarray]:
    """Look at the training rows, [N, d] as the encoder gives them, once more; also returns their clusters, int32 [N]."""
    chunks = np.array_split(embeddings, max(1, len(embeddings) // CHUNK))
    found = [top_two(probabilities(method, chunk)) for chunk in chunks]
    clusters, confidence = (np.concatenate([one[column] for one in found]) for column in (0, 1))
    novelty = fit_novelty(torch.from_numpy(embeddings))
    return Memory(novelty, snapshot(clusters, confidence, method.n_clusters)), clusters


@dataclass(frozen=True)
class Model:
    """A trained method, the record it was saved with, and the names of its clusters."""

    method: Method
    novelty: Novelty
    snapshot: Snapshot
    """Of the training set."""
    record: dict[str, Any]
    clusters: list[dict[str, Any]]
    folder: Location
    storage: StorageConfig = StorageConfig()
    device: str = "cpu"

    @property
    def names(self) -> list[str]:
        """Cluster names, indexed by cluster."""
        return [cluster["name"] for cluster in self.clusters]

    @cached_property
    def spec(self) -> EncoderSpec:
        """The encoder that the model was trained behind, fine-tuned if it was; found at first use and checked against the record."""
        from raycluster.encoder.clip import TunedTower, resolve_encoder

        stored = self.record["encoder"]
        if stored["config"] is None:
            raise ConfigError(
                "this model was trained on ready-made embeddings: predict on embeddings of the same encoder"
            )
        config = {**stored["config"], "precision": stored["precision"]}
        spec = resolve_encoder(validate(config, EncoderConfig, "model.json: encoder"), True, self.storage)
        if spec.fingerprint != stored["fingerprint"]:
            raise ArtifactError(
                f"encoder {spec.model}: the weights found now (fingerprint {spec.fingerprint}) are not those the model was trained "
                f"with ({stored['fingerprint']}); restore them, or train again"
            )
        sha256 = self.record["sha256"].get(ENCODER_FILE)
        return spec.tuned(TunedTower(self.folder / ENCODER_FILE, sha256)) if sha256 else spec

    @cached_property
    def encoder(self) -> ClipEncoder:
        """The encoder, loaded at first use."""
        from raycluster.encoder.clip import ClipEncoder

        return ClipEncoder.load(self.spec_on(self.device), self.device)

    def spec_on(self, device: str) -> EncoderSpec:
        """The encoder as it is to run on `device`.

        A model of a GPU's half precision runs on a CPU in full precision: nearer to what was meant, and faster there.
        """
        return self.spec if device != "cpu" else replace(self.spec, precision="fp32")

    def predict(self, pictures: np.ndarray | Sequence[str | Path | bytes | Image]) -> Predictions:
        """Assign pictures to clusters.

        `pictures`: paths or URIs, encoded bytes, PIL images – mixed as you like – or an array [n, d] of embeddings as the
        encoder gives them. A picture that cannot be read gets its status; it never raises.
        """
        if isinstance(pictures, np.ndarray):
            return self._assign(self._checked(pictures), ["ok"] * len(pictures), [None] * len(pictures))
        embeddings, status, error = self._embed(list(pictures))
        return self._assign(embeddings, status, error)

    def _checked(self, embeddings: np.ndarray) -> np.ndarray:
        dim = self.record["dim"]
        if embeddings.ndim != 2 or embeddings.shape[1] != dim:
            raise ConfigError(f"embeddings have the shape {embeddings.shape}; this model takes [n, {dim}]")
        if not np.isfinite(embeddings).all():
            raise ConfigError("embeddings contain NaN or infinite values; remove those rows")
        return embeddings

    def _embed(self, pictures: list[Any]) -> tuple[np.ndarray, list[str], list[str | None]]:
        from raycluster.encoder.clip import pil_transform
        from raycluster.images.decode import decode_batch
        from raycluster.images.fetch import Fetched, fetch_batch

        limits = validate(self.record["encoder"]["config"], EncoderConfig, "model.json: encoder")
        spec = self.spec
        named = [str(picture) for picture in pictures if isinstance(picture, (str, Path))]
        read = iter(fetch_batch(named, [None] * len(named), self.storage, limits.max_bytes))
        fetched = [
            next(read)
            if isinstance(picture, (str, Path))
            else Fetched(picture if isinstance(picture, bytes) else _png(picture))
            for picture in pictures
        ]
        decoded = decode_batch(fetched, pil_transform(spec), limits.max_pixels, min_side=min(spec.image_size))
        ok = [pixels for pixels in decoded.pixels if pixels is not None]
        embeddings = np.full((len(pictures), spec.dim), np.nan, np.float16)
        rows = np.flatnonzero([pixels is not None for pixels in decoded.pixels])
        embeddings[rows] = self.encode(np.frombuffer(b"".join(ok), np.uint8).reshape(-1, *spec.pixel_shape))
        return embeddings, list(decoded.status), decoded.error

    def encode(self, pixels: np.ndarray, batch: int = 64) -> np.ndarray:
        """uint8 [n, height, width, 3] as :func:`~raycluster.encoder.clip.pil_transform` gives them → float16 [n, d] embeddings."""
        parts = [self.encoder.encode_pixels(pixels[start : start + batch]) for start in range(0, len(pixels), batch)]
        return np.concatenate(parts) if parts else np.empty((0, self.record["dim"]), np.float16)

    def _assign(self, embeddings: np.ndarray, status: list[str], error: list[str | None]) -> Predictions:
        n, rows = len(status), np.flatnonzero([s == "ok" for s in status])
        cluster, runner_up = np.full(n, -1, np.int32), np.full(n, -1, np.int32)
        confidence, margin = np.full(n, np.nan, np.float32), np.full(n, np.nan, np.float32)
        outlier = np.zeros(n, bool)
        if len(rows):
            p = probabilities(self.method, embeddings[rows])
            cluster[rows], confidence[rows], margin[rows], runner_up[rows] = top_two(p)
            outlier[rows] = outliers(self.novelty, embeddings[rows])
        names = [self.names[c] if c >= 0 else None for c in cluster]
        return Predictions(cluster, names, confidence, margin, runner_up, outlier, list(status), list(error))


def _png(image: Image) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    image.convert("RGB").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


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
