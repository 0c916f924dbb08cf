"""The work of the endpoint, without HTTP and without Ray: assign pictures or embeddings to clusters.

Pictures are fetched and decoded here by the same functions as in the batch stages. The model gets them as uint8 arrays.
"""

from __future__ import annotations

import asyncio
import math
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np

from raycluster.encoder.clip import pil_transform
from raycluster.images.decode import decode_batch
from raycluster.images.fetch import Fetched, StorageError, fetch
from raycluster.serving.access import allowed_locations, permitted, read_tokens
from raycluster.serving.gallery import picture
from raycluster.serving.live_model import Answer, ModelInfo, Stale
from raycluster.serving.requests import Gate, Picture, Refused, overloaded
from raycluster.serving.schemas import Assignment, Candidate, EmbeddingItem, Exemplar, ItemError
from raycluster.serving.settings import ServeSettings
from raycluster.storage.credentials import CredentialsError

INFO_SECONDS = 2.0
"""Seconds that the model's info is reused before the model is asked for it again. Answers always carry their own version."""
SWAPS = 4
"""Maximum number of times that one request is preprocessed. It is preprocessed again when the model has changed meanwhile."""
MAX_SCANS = 100
"""Maximum number of scans of a JPEG. A progressive JPEG has about ten. Each scan is a pass over the whole picture, so thousands in a small
file take minutes."""
FETCH_THREADS = 8
SHOWN_CLUSTERS = 256
"""Maximum number of clusters for which thumbnails are cached."""
SHOWN_RETRY_S = 10.0
"""Seconds until thumbnails that the storage did not give are asked for again; until then the cluster is shown without them."""
UNANSWERED = (StorageError, CredentialsError, TimeoutError)
"""Errors that say nothing about a picture, only that the storage does not give it at present."""

T = TypeVar("T")


class ModelClient(Protocol):
    """Access to the model, wherever it runs."""

    async def model_info(self) -> ModelInfo:
        """Return the info of the model in use."""

    async def assign(self, rows: np.ndarray, pixels: str | None, top_k: int) -> Answer | Stale:
        """Assign pictures (uint8 [n, height, width, 3], preprocessed as `pixels`) or embeddings [n, d] (`pixels` None)."""

    async def clusters(self, start: int, stop: int) -> tuple[str, list[dict[str, Any]], int]:
        """Return the model's version, the clusters from `start` to `stop` as plain data, and the number of all clusters."""


class Service:
    """The work of one ingress replica on its requests. A service belongs to one event loop."""

    def __init__(self, settings: ServeSettings, model: ModelClient, threads: int) -> None:
        """Create the service; `threads`: pictures decoded at a time. Raises :class:`ConfigError` if tokens or prefixes cannot be used."""
        self.settings, self.limits, self.model = settings, settings.limits, model
        self.tokens, self.gate = read_tokens(settings.tokens_file), Gate(settings.limits)
        self._allowed = allowed_locations(settings.allowed_prefixes, settings.storage)
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._fetchers = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")
        self._info: ModelInfo | None = None
        self._asked = 0.0
        self._shown: OrderedDict[tuple[str, int], tuple[list[Exemplar], float]] = OrderedDict()
        # Several threads decode at once: when one ends `decode_batch`, its warning filter ends for the others too. So filter for good.
        warnings.filterwarnings("ignore", module="PIL")

    @property
    def version(self) -> str | None:
        """The last known version of the model."""
        return self._info.version if self._info else None

    async def model_info(self, fresh: bool = False) -> ModelInfo:
        """Return the info of the model in use, at most `INFO_SECONDS` old; with `fresh`, ask the model now.

        Raises :class:`Refused` (503) if no model answers in time.
        """
        if fresh or self._info is None or time.monotonic() - self._asked > INFO_SECONDS:
            async with self._in_time(min(5.0, self.limits.request_seconds)):
                self._info, self._asked = await self.model.model_info(), time.monotonic()
        assert self._info is not None
        return self._info

    async def assign_pictures(self, pictures: Sequence[Picture], top_k: int) -> tuple[str, list[Assignment]]:
        """Return the version of the model and the assignment of each picture."""
        async with self._in_time(self.limits.request_seconds):
            info = await self.model_info()
            if info.spec is None:
                raise Refused(
                    422,
                    "no_pictures",
                    "this model was trained on ready-made embeddings; send embeddings to /v1/assign/embeddings",
                )
            with self.gate.admit_items(len(pictures)):
                fetched = await asyncio.gather(*(self._fetch(each, info) for each in pictures))
                return await self._assign_fetched(pictures, fetched, info, top_k)

    async def _assign_fetched(
        self, pictures: Sequence[Picture], fetched: Sequence[Fetched | ItemError], info: ModelInfo, top_k: int
    ) -> tuple[str, list[Assignment]]:
        for _ in range(SWAPS):
            decoded = await asyncio.gather(*(self._decode(each, info) for each in fetched))
            pixels = [each for each in decoded if isinstance(each, np.ndarray)]
            faults = [each if isinstance(each, ItemError) else None for each in decoded]
            ids = [each.id for each in pictures]
            if not pixels:
                return info.version, list(_assignments(ids, faults, None))
            answer = await self.model.assign(np.stack(pixels), info.pixels, top_k)
            if isinstance(answer, Answer):
                return answer.version, list(_assignments(ids, faults, answer))
            info = self._info = answer.info
        raise overloaded("the model is being replaced")

    async def assign_embeddings(self, items: Sequence[EmbeddingItem], top_k: int) -> tuple[str, list[Assignment]]:
        """Return the version of the model and the assignment of each embedding."""
        async with self._in_time(self.limits.request_seconds):
            info = await self.model_info()
            faults = [_embedding_fault(item.embedding, info.dim) for item in items]
            ids = [item.id if item.id is not None else str(index) for index, item in enumerate(items)]
            rows = [item.embedding for item, fault in zip(items, faults, strict=True) if fault is None]
            if not rows:
                return info.version, list(_assignments(ids, faults, None))
            answer = await self.model.assign(np.array(rows, np.float16), None, top_k)
            if isinstance(answer, Stale):
                raise overloaded("the model is being replaced")
            return answer.version, list(_assignments(ids, faults, answer))

    async def clusters(self, start: int, stop: int) -> tuple[str, list[dict[str, Any]], int]:
        """Return the model's version, the clusters from `start` to `stop` as plain data, and the number of all clusters."""
        async with self._in_time(self.limits.request_seconds):
            return await self.model.clusters(start, stop)

    async def exemplars(self, version: str, cluster: dict[str, Any]) -> list[Exemplar]:
        """Return the typical images of a cluster, with thumbnails if the pictures can be read."""
        key = (version, cluster["cluster"])
        shown, until = self._shown.get(key, ([], 0.0))
        if cluster["exemplars"] and time.monotonic() >= until:
            info = await self.model_info()
            images = cluster["exemplars"]
            async with self._in_time(self.limits.request_seconds):
                small = await asyncio.gather(*(self._thumbnail(image["uri"], info) for image in images))
            shown = [
                Exemplar(image_id=image["image_id"], confidence=image["confidence"], thumbnail=jpeg)
                for image, (jpeg, _) in zip(images, small, strict=True)
            ]
            complete = all(answered for _, answered in small)
            self._shown[key] = shown, math.inf if complete else time.monotonic() + SHOWN_RETRY_S
            while len(self._shown) > SHOWN_CLUSTERS:
                self._shown.popitem(last=False)
        return shown

    async def _thumbnail(self, uri: str, info: ModelInfo) -> tuple[str | None, bool]:
        """Return a thumbnail, or None if there is no picture (any more), and whether this is final: False if the storage did not answer."""
        if info.spec is None:
            return None, True
        # These URIs come from the run's own table. No request can choose them, so they need no check against the allowed places.
        work = (uri, self.settings.storage, info.max_bytes, info.max_pixels)
        try:
            async with asyncio.timeout(self.limits.fetch_seconds):
                return await self._run(self._fetchers, picture, *work), True
        except UNANSWERED:
            return None, False

    async def _fetch(self, item: Picture, info: ModelInfo) -> Fetched | ItemError:
        """Return the bytes of a picture, or the error that explains why there are none."""
        most = min(self.limits.max_image_bytes, info.max_bytes)
        if item.fault is not None:
            return ItemError(code=item.fault[0], message=item.fault[1])
        if item.uri is None:
            data = item.data or b""
            if len(data) > most:
                return ItemError(
                    code="too_large", message=f"the picture has {len(data)} bytes, more than the allowed {most}"
                )
            return Fetched(data)
        storage = self.settings.storage
        try:
            place = await self._run(self._fetchers, permitted, item.uri, self._allowed, storage)
        except ValueError as error:
            return ItemError(code="failed", message=str(error)[:200])
        if place is None:
            return ItemError(code="forbidden", message="the URI is not below a place that this server allows")
        try:
            # After the timeout, the thread still runs until the storage's client gives up.
            async with asyncio.timeout(self.limits.fetch_seconds):
                return await self._run(self._fetchers, lambda: fetch(place, storage, most, sleep=_short_sleep))
        except UNANSWERED:
            return ItemError(code="unavailable", message="the storage did not answer; try again later")

    async def _decode(self, fetched: Fetched | ItemError, info: ModelInfo) -> np.ndarray | ItemError:
        """Return the pixels, uint8 [height, width, 3] at the model's size, or the error that explains why there are none."""
        if isinstance(fetched, ItemError):
            return fetched
        return await self._run(self._decoders, decode_picture, fetched, info, self.limits.max_image_pixels)

    async def _run(self, pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)

    def _in_time(self, seconds: float) -> _InTime:
        return _InTime(seconds)


class _InTime:
    """Like `asyncio.timeout`, but raises :class:`Refused` with 503."""

    def __init__(self, seconds: float) -> None:
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise overloaded("the model did not answer in time") from None


def decode_picture(fetched: Fetched, info: ModelInfo, max_pixels: int) -> np.ndarray | ItemError:
    """Decode and preprocess one picture as the batch stages do. Return uint8 [height, width, 3], or the error."""
    spec = info.spec
    assert spec is not None
    if fetched.data is not None and fetched.data[:2] == b"\xff\xd8" and fetched.data.count(b"\xff\xda") > MAX_SCANS:
        return ItemError(code="too_large", message=f"the JPEG has more than {MAX_SCANS} scans")
    most = min(max_pixels, info.max_pixels)
    decoded = decode_batch([fetched], pil_transform(spec), most, min_side=min(spec.image_size))
    status, pixels = decoded.status[0], decoded.pixels[0]
    if status == "ok" and pixels is not None:
        return np.frombuffer(pixels, np.uint8).reshape(spec.pixel_shape)
    assert status != "ok"
    return ItemError(code=status, message=decoded.error[0] or status)


def _short_sleep(seconds: float) -> None:
    """Sleep between two tries to read a picture, but at most half a second, because a client is waiting."""
    time.sleep(min(seconds, 0.5))


def _embedding_fault(embedding: list[float], dim: int) -> ItemError | None:
    if len(embedding) != dim:
        return ItemError(
            code="wrong_dimension", message=f"the embedding has {len(embedding)} numbers, but this model takes {dim}"
        )
    with np.errstate(over="ignore"):
        # The batch tables hold float16, and the model's input is float16 too.
        if not np.isfinite(np.array(embedding, np.float16)).all():
            return ItemError(code="out_of_range", message="a number is beyond ±65504, the range of float16")
    return None


def _assignments(ids: Sequence[str], faults: Sequence[ItemError | None], answer: Answer | None) -> Iterator[Assignment]:
    """Yield one assignment for each id, in order. `answer` has rows only for the items without a fault."""
    row = 0
    for name, fault in zip(ids, faults, strict=True):
        if fault is not None or answer is None:
            yield Assignment(
                id=name, cluster=None, name=None, confidence=None, margin=None, outlier=None, top=[], error=fault
            )
            continue
        cluster = int(answer.cluster[row])
        yield Assignment(
            id=name,
            cluster=cluster,
            name=answer.names[cluster],
            confidence=float(answer.confidence[row]),
            margin=float(answer.margin[row]),
            outlier=bool(answer.outlier[row]),
            top=[
                Candidate(cluster=int(c), name=answer.names[int(c)], confidence=float(p))
                for c, p in zip(answer.top[row], answer.top_confidence[row], strict=True)
            ],
            error=None,
        )
        row += 1
