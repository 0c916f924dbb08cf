"""The model in use, and how another one replaces it: it is loaded, checked, warmed up and swapped in, or refused with the reason."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from raycluster.config import EncoderConfig, StorageConfig
from raycluster.encoder.clip import EncoderSpec
from raycluster.errors import ArtifactError, ConfigError, MissingFileError, RayclusterError
from raycluster.model.files import load_folder, model_folder
from raycluster.model.model import Model
from raycluster.model.prediction import outliers, probabilities, top_two
from raycluster.section import fingerprint
from raycluster.serving.gallery import Gallery, read_gallery
from raycluster.serving.waiting import State, Waiting, state_of
from raycluster.storage.location import Location, locate
from raycluster.tables.markers import now

log = logging.getLogger(__name__)

GRACE_S = 60.0
"""Seconds that the previous model is kept after a swap, for pictures that were preprocessed for it."""


class IncompatibleError(ConfigError):
    """The model is intact, but does not fit this endpoint."""


FINAL = (ArtifactError, IncompatibleError)
"""Errors in the content of a model. Other causes may go away by themselves: the storage, a file that is not visible yet
(:class:`MissingFileError`), memory, a download of weights."""


@dataclass(frozen=True)
class ModelInfo:
    """What an ingress must know about the model in use. It is small, because it is sent often."""

    version: str
    """Hash of `model.json`, which holds the hashes of all other files."""
    folder: str
    method: str
    n_clusters: int
    dim: int
    spec: EncoderSpec | None
    """The encoder; None for a model trained on ready-made embeddings."""
    pixels: str | None
    """Name of the preprocessing (:func:`preprocessing`). It is equal for encoders that take the same uint8 pictures."""
    max_bytes: int
    max_pixels: int
    device: str
    loaded: str
    refused: dict[str, str] | None = None
    """`{run, reason, at}` of the newest model that was offered and refused."""


@dataclass(frozen=True)
class Answer:
    """The assignments of the n rows of one request."""

    version: str
    cluster: np.ndarray
    """int32 [n]."""
    confidence: np.ndarray
    """float32 [n]."""
    margin: np.ndarray
    """float32 [n]."""
    outlier: np.ndarray
    """bool [n]."""
    top: np.ndarray
    """int32 [n, k], most probable cluster first."""
    top_confidence: np.ndarray
    """float32 [n, k]."""
    names: dict[int, str]
    """Names of all clusters in `top`, and perhaps of more."""

    def part(self, start: int, stop: int, top_k: int) -> Answer:
        """Return the answer for the rows from `start` to `stop`, with at most `top_k` clusters a row."""
        here = slice(start, stop)
        return Answer(
            self.version,
            self.cluster[here],
            self.confidence[here],
            self.margin[here],
            self.outlier[here],
            self.top[here, :top_k],
            self.top_confidence[here, :top_k],
            self.names,
        )


@dataclass(frozen=True)
class Stale:
    """The reply to pictures that were preprocessed for another encoder. They must be preprocessed again for the model of `info`."""

    info: ModelInfo


@dataclass(frozen=True)
class Job:
    """The rows of one request."""

    rows: np.ndarray
    """uint8 [n, height, width, 3], or embeddings [n, d]."""
    pixels: str | None
    """Name of the preprocessing; None for embeddings."""
    top_k: int

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Loaded:
    """A model that has been loaded and warmed up."""

    model: Model
    info: ModelInfo
    gallery: Gallery

    @classmethod
    def load(cls, run: str | Location, storage: StorageConfig, device: str, max_batch: int) -> Loaded:
        """Load the current model of `run`, verify every file, and warm it up.

        Raises :class:`RayclusterError` if it is missing, damaged, or not what its record says.
        """
        place = run if isinstance(run, Location) else locate(run, storage)
        model = load_folder(model_folder(place), storage, device)
        limits, spec = model.encoder_config or EncoderConfig(model="builtin"), None
        rows = np.zeros((1, model.record["dim"]), np.float16)
        if model.encoder_config is not None:
            spec = model.spec
            # Warm up with the largest and the smallest batch: the first batch of a size chooses kernels and allocates memory.
            model.encode(np.zeros((max_batch, *spec.pixel_shape), np.uint8))
            rows = model.encode(np.zeros((1, *spec.pixel_shape), np.uint8))
        p = probabilities(model.method, rows)
        clusters = model.record["n_clusters"]
        if p.shape != (1, clusters) or not torch.isfinite(p).all():
            raise ArtifactError(
                f"{model.folder.uri}: the model does not give {clusters} finite probabilities; train it again"
            )
        info = ModelInfo(
            version=fingerprint(model.record),
            folder=model.folder.uri,
            method=model.record["method"],
            n_clusters=clusters,
            dim=model.record["dim"],
            spec=spec,
            pixels=None if spec is None else preprocessing(spec),
            max_bytes=limits.max_bytes,
            max_pixels=limits.max_pixels,
            device=device,
            loaded=now(),
        )
        return cls(model, info, read_gallery(model))

    def answer(self, jobs: Sequence[Job]) -> list[Answer]:
        """Assign the rows of several requests in one batch. All of them must have the same `pixels`."""
        rows = np.concatenate([job.rows for job in jobs])
        embeddings = self.model.encode(rows) if jobs[0].pixels else rows
        p, outlier = probabilities(self.model.method, embeddings), outliers(self.model.novelty, embeddings)
        cluster, confidence, margin, _ = top_two(p)
        values, indices = p.topk(min(max(job.top_k for job in jobs), p.shape[1]), dim=1)
        top = indices.to(torch.int32).numpy()
        names = {int(c): self.model.names[c] for c in np.unique(np.append(top, cluster))}
        whole = Answer(self.info.version, cluster, confidence, margin, outlier, top, values.numpy(), names)
        ends = list(accumulate(map(len, jobs)))
        return [whole.part(end - len(job), end, job.top_k) for job, end in zip(jobs, ends, strict=True)]


def preprocessing(spec: EncoderSpec) -> str:
    """Return a name (a hash) for what :func:`~raycluster.encoder.clip.pil_transform` does for this encoder."""
    return fingerprint([spec.image_size, spec.interpolation, spec.resize_mode, spec.fill_color])


class LiveModel:
    """The model in use. One thread computes with it while another may offer a new one."""

    def __init__(self, run: str, storage: StorageConfig, device: str, max_batch: int) -> None:
        """Load the current model of `run`. Raises :class:`RayclusterError` if it cannot be used."""
        self._storage, self._device, self._max_batch = storage, device, max_batch
        self._run = run
        self._settled: State | None = None
        self._waiting: Waiting | None = None
        self._refused: dict[str, str] | None = None
        self._previous: tuple[Loaded, float] | None = None
        folder = self._folder()
        self._settled, self._current = state_of(folder), self._load(folder)

    @property
    def info(self) -> ModelInfo:
        """The info of the model in use, and in `refused` the newest model that was refused since its start."""
        return replace(self._current.info, refused=self._refused)

    @property
    def gallery(self) -> Gallery:
        """The clusters of the model in use."""
        return self._current.gallery

    def offer(self, run: str) -> bool:
        """Replace the model in use by the current model of `run`, and return whether that succeeded. Never raises.

        If the new model cannot be used, the old one stays in use. If the cause may go away by itself (it is not in
        `FINAL`), :meth:`look` tries again, after pauses that grow.
        """
        self._run, self._waiting = run, None
        return self._try()

    def look(self) -> bool:
        """Try the run's current model if it is new, or if its pause is over; return whether it replaced the model in use. Never raises.

        A model that was refused for good is tried again only when the run has another model, or a file of that model has changed.
        """
        try:
            state = state_of(self._folder())
            if state == self._settled:
                self._waiting = None  # the run has gone back to a model that was already loaded or refused for good
                if not self.gallery.described:
                    # The run describes its clusters some stages after it has saved the model.
                    self._current = replace(self._current, gallery=read_gallery(self._current.model))
        except Exception as error:  # noqa: BLE001 - while a run is computed again, it has no current model for some time
            log.info("no model in %s at present: %s", self._run, error)
            if self._waiting:
                self._waiting = Waiting.after(self._waiting, self._waiting.state)
            return False
        paused = self._waiting and self._waiting.state == state and self._waiting.left > 0
        return state != self._settled and not paused and self._try()

    def next_look(self, every: float | None) -> float | None:
        """Return the seconds until :meth:`look` should be called: at most `every`, if given. None means that nothing waits."""
        pauses = [] if every is None else [every]
        if self._waiting:
            pauses.append(self._waiting.left)
        return min(pauses, default=None)

    def _try(self) -> bool:
        state = None
        try:
            folder = self._folder()
            # The state is taken before the files are read, so that a file written meanwhile causes another try.
            state = state_of(folder)
            candidate = self._load(folder)
            self._check_compatible(candidate)
        # Whatever is wrong with an offered model, the model in use goes on answering.
        except Exception as error:  # noqa: BLE001
            self._refuse(error, state)
            return False
        before, self._current = self._current, candidate
        self._settled, self._waiting, self._refused = state, None, None
        self._previous = (before, time.monotonic()) if before.info.pixels != candidate.info.pixels else None
        log.info("model %s of %s is in use now; it replaces %s", candidate.info.version, self._run, before.info.version)
        return True

    def _refuse(self, error: Exception, state: State | None) -> None:
        reason = str(error) if isinstance(error, RayclusterError) else f"{type(error).__name__}: {error}"
        reason = " ".join(reason.split())[:1000]
        if isinstance(error, FINAL) and not isinstance(error, MissingFileError):
            self._settled, self._waiting = state, None
        else:
            self._waiting = Waiting.after(self._waiting, state)
            reason += f"; it is tried again in {self._waiting.pause:.0f} s"
        self._refused = {"run": self._run, "reason": reason, "at": now()}
        log.error("the model of %s was refused: %s", self._run, reason)

    def answer(self, jobs: Sequence[Job]) -> list[Answer | Stale]:
        """Assign the rows of several requests. A request with pictures for an encoder that is gone gets :class:`Stale`."""
        current, results = self._current, dict[int, Answer | Stale]()
        kinds = {job.pixels: [i for i, other in enumerate(jobs) if other.pixels == job.pixels] for job in jobs}
        for pixels, places in kinds.items():
            model = current if pixels in (None, current.info.pixels) else self._before(pixels)
            if model is None:
                results.update((place, Stale(self.info)) for place in places)
            else:
                answers = model.answer([jobs[place] for place in places])
                results.update(zip(places, answers, strict=True))
        return [results[place] for place in range(len(jobs))]

    def _folder(self) -> Location:
        return model_folder(locate(self._run, self._storage))

    def _load(self, folder: Location) -> Loaded:
        return Loaded.load(folder, self._storage, self._device, self._max_batch)

    def _check_compatible(self, new: Loaded) -> None:
        old, info = self._current.info, new.info
        if old.spec is not None and info.spec is None:
            raise IncompatibleError(
                f"{info.folder}: the model was trained on ready-made embeddings, but this endpoint takes pictures; deploy it as a separate endpoint"
            )
        if info.spec is None and info.dim != old.dim:
            raise IncompatibleError(
                f"{info.folder}: the model takes embeddings of {info.dim} numbers, but this endpoint takes {old.dim}; deploy it as a separate endpoint"
            )

    def _before(self, pixels: str | None) -> Loaded | None:
        if self._previous and time.monotonic() - self._previous[1] > GRACE_S:
            self._previous = None
        return self._previous[0] if self._previous and self._previous[0].info.pixels == pixels else None


def describe_encoder(info: ModelInfo) -> dict[str, Any] | None:
    """Return the facts about the encoder that `/v1/model` shows; None for a model trained on ready-made embeddings."""
    spec = info.spec
    if spec is None:
        return None
    facts = {
        "model": spec.model,
        "pretrained": spec.pretrained,
        "precision": spec.precision,
        "tuned": spec.tower is not None,
    }
    return {**facts, "image_size": list(spec.image_size), "fingerprint": spec.fingerprint}
