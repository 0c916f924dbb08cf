"""The servable model: a trained method, the encoder that feeds it, and what it keeps of its training rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from raycluster.config import EncoderConfig, StorageConfig
from raycluster.encoder.clip import ClipEncoder, EncoderSpec, TunedTower, pil_transform, resolve_encoder
from raycluster.errors import ArtifactError, ConfigError
from raycluster.images.decode import Rejected, check_pixels, decode_batch
from raycluster.images.fetch import Fetched, fetch_batch
from raycluster.images.pictures import SLICE_ROWS
from raycluster.methods.base import Method
from raycluster.model.drift import Snapshot, snapshot
from raycluster.model.novelty import Novelty, fit_novelty
from raycluster.model.prediction import Predictions, outliers, probabilities, top_two
from raycluster.model.record import ENCODER_FILE
from raycluster.section import validate
from raycluster.storage.location import Location

CHUNK = 16_384
"""Approximate number of rows in a chunk. The probabilities of one chunk at a time are in memory."""


@dataclass(frozen=True)
class Memory:
    """What a model keeps of the rows it was trained on."""

    novelty: Novelty
    snapshot: Snapshot


def make_memory(method: Method, embeddings: np.ndarray) -> tuple[Memory, np.ndarray]:
    """Predict the training rows, [N, d] as the encoder gives them; return what the model keeps of them, and their clusters, int32 [N]."""
    chunks = np.array_split(embeddings, max(1, len(embeddings) // CHUNK))
    found = [top_two(probabilities(method, chunk)) for chunk in chunks]
    clusters, confidence = (np.concatenate([one[column] for one in found]) for column in (0, 1))
    with warnings.catch_warnings():
        # Ray's shared memory is read-only; that is safe, because nothing writes to this tensor.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        novelty = fit_novelty(torch.from_numpy(embeddings))
    sizes = np.bincount(clusters, minlength=method.n_clusters)
    return Memory(novelty, snapshot(sizes, confidence)), clusters


@dataclass(frozen=True)
class Model:
    """A trained method, the record it was saved with, and the names of its clusters."""

    method: Method
    novelty: Novelty
    snapshot: Snapshot
    """How the training set spread over the clusters."""
    record: dict[str, Any]
    """`model.json`, checked by :class:`ModelRecord`."""
    clusters: list[dict[str, Any]]
    folder: Location
    storage: StorageConfig = StorageConfig()
    device: str = "cpu"

    @property
    def names(self) -> list[str]:
        """Cluster names, indexed by cluster."""
        return [cluster["name"] for cluster in self.clusters]

    @cached_property
    def encoder_config(self) -> EncoderConfig | None:
        """The `encoder` section of the run that made the model; None for a model trained on ready-made embeddings."""
        stored = self.record["encoder"]["config"]
        return None if stored is None else validate(stored, EncoderConfig, "model.json: encoder")

    @cached_property
    def spec(self) -> EncoderSpec:
        """The encoder that the model was trained with, with its tuned weights if there are any.

        It is found at first use and checked against the record. Raises :class:`ConfigError` for a model without an encoder, and
        :class:`ArtifactError` if the weights found are others.
        """
        stored, config = self.record["encoder"], self.encoder_config
        if config is None:
            raise ConfigError(
                f"{self.folder.uri}: the model was trained on ready-made embeddings and cannot read pictures; "
                "embed the pictures with the same encoder and give the embeddings instead"
            )
        spec = resolve_encoder(config.model_copy(update={"precision": stored["precision"]}), True, self.storage)
        if spec.fingerprint != stored["fingerprint"]:
            raise ArtifactError(
                f"encoder {spec.model}: the weights found now (fingerprint {spec.fingerprint}) are not those the model was trained "
                f"with ({stored['fingerprint']}); restore those, or train again"
            )
        sha256 = self.record["sha256"].get(ENCODER_FILE)
        return spec.tuned(TunedTower(self.folder / ENCODER_FILE, sha256)) if sha256 else spec

    @cached_property
    def encoder(self) -> ClipEncoder:
        """The encoder, loaded at first use."""
        return ClipEncoder.load(self.spec_on(self.device), self.device)

    def spec_on(self, device: str) -> EncoderSpec:
        """Return the encoder as it runs on `device`.

        A CPU always computes in full precision, even if the model was trained with a GPU's half precision: on a CPU full precision
        is faster, and it is more exact.
        """
        return self.spec if device != "cpu" else replace(self.spec, precision="fp32")

    def predict(self, pictures: np.ndarray | Sequence[str | Path | bytes | Image]) -> Predictions:
        """Assign pictures to clusters.

        `pictures`: paths or URIs, encoded bytes, PIL images – mixed as you like – or an array [n, d] of embeddings as the
        encoder gives them. A picture that cannot be read gets a status that says why; it raises no error.
        """
        if isinstance(pictures, np.ndarray):
            return self._assign(self._checked(pictures), ["ok"] * len(pictures), [None] * len(pictures))
        embeddings, status, error = self._embed(list(pictures))
        return self._assign(embeddings, status, error)

    def _checked(self, embeddings: np.ndarray) -> np.ndarray:
        dim = self.record["dim"]
        if embeddings.ndim != 2 or embeddings.shape[1] != dim:
            raise ConfigError(
                f"embeddings: their shape is {embeddings.shape}, but this model takes [n, {dim}]; make them with its encoder"
            )
        if not np.isfinite(embeddings).all():
            raise ConfigError("embeddings: some rows contain NaN or infinity; remove those rows")
        return embeddings

    def _embed(self, pictures: list[Any]) -> tuple[np.ndarray, list[str], list[str | None]]:
        """Return embeddings [n, d], statuses and errors. Memory holds the originals and the pixels of one slice at a time."""
        starts = range(0, max(1, len(pictures)), SLICE_ROWS)
        found = [self._embed_slice(pictures[start : start + SLICE_ROWS]) for start in starts]
        embeddings, status, error = zip(*found, strict=True)
        return np.concatenate(embeddings), list(chain(*status)), list(chain(*error))

    def _embed_slice(self, pictures: list[Any]) -> tuple[np.ndarray, list[str], list[str | None]]:
        spec, limits = self.spec, self.encoder_config
        assert limits is not None  # `spec` has raised for a model without an encoder
        named = [str(picture) for picture in pictures if isinstance(picture, (str, Path))]
        read = iter(fetch_batch(named, [None] * len(named), self.storage, limits.max_bytes))
        fetched = [
            next(read) if isinstance(picture, (str, Path)) else _given(picture, limits.max_pixels)
            for picture in pictures
        ]
        decoded = decode_batch(fetched, pil_transform(spec), limits.max_pixels, min_side=min(spec.image_size))
        ok = [pixels for pixels in decoded.pixels if pixels is not None]
        embeddings = np.full((len(pictures), spec.dim), np.nan, np.float16)
        rows = np.flatnonzero([pixels is not None for pixels in decoded.pixels])
        embeddings[rows] = self.encode(np.frombuffer(b"".join(ok), np.uint8).reshape(-1, *spec.pixel_shape))
        return embeddings, list(decoded.status), decoded.error

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Return embeddings, float16 [n, d], of pixels uint8 [n, height, width, 3] from :func:`~raycluster.encoder.clip.pil_transform`."""
        return self.encoder.encode_pixels(pixels)

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


def _given(picture: bytes | Image, max_pixels: int) -> Fetched:
    """Return the bytes of a picture that the caller passed.

    Pillow opens an image without decoding it, so the number of pixels is checked before `convert` decodes it.
    """
    if isinstance(picture, bytes):
        return Fetched(picture)
    try:
        check_pixels(picture, max_pixels)
    except Rejected as rejected:
        return Fetched(None, rejected.status, rejected.reason)
    buffer = BytesIO()
    picture.convert("RGB").save(buffer, "PNG", compress_level=1)
    return Fetched(buffer.getvalue())
