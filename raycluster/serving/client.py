"""A small client: it batches pictures into requests, sends several requests at a time, and tries again where that can help.

It needs neither torch nor Ray, only `requests`.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import requests

from raycluster.errors import RayclusterError
from raycluster.images.listing.walk import PICTURE_SUFFIXES

PATIENCE_S = 120.0
"""Seconds after the first try in which further tries may begin."""
LONGEST_PAUSE_S = 20.0
"""Longest backoff between two tries in seconds. The client obeys a longer `Retry-After` of the endpoint all the same."""
RETRIED = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP status codes after which a request is sent again. This is safe, because assigning changes nothing in the endpoint."""

T = TypeVar("T")


class EndpointError(RayclusterError):
    """The endpoint refused a request, or could not be reached; in the second case `status` is None."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Client of one endpoint. Several threads may use it at once."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        token: str | None = None,
        batch: int = 16,
        parallel: int = 4,
        timeout: float = 90.0,
        patience: float = PATIENCE_S,
    ) -> None:
        """Create a client of the endpoint at `url`.

        `token`: bearer token, default `$RAYCLUSTER_TOKEN`; `batch`: pictures in a request; `parallel`: requests at a time;
        `timeout`: seconds that one try waits for the endpoint; `patience`: seconds in which further tries may begin.
        """
        self.url, self.batch, self.parallel, self.timeout, self.patience = (
            url.rstrip("/"),
            batch,
            parallel,
            timeout,
            patience,
        )
        self._token = token if token is not None else os.environ.get("RAYCLUSTER_TOKEN")
        self._local = threading.local()

    def assign(self, pictures: Iterable[str | Path | bytes], top_k: int = 3) -> Iterator[dict[str, Any]]:
        """Yield the item of the endpoint's answer for each picture, in order and as soon as it comes, with `model` added.

        `pictures`: paths, or encoded bytes. An iterator is read lazily: only the pictures that are being sent are held in
        memory. A path that cannot be read gets an item with an error, in the form of the endpoint's own errors.
        """
        numbered = enumerate(pictures)
        yield from self._in_order(lambda batch: self._assign_batch(batch, top_k), _batches(numbered, self.batch))

    def assign_folder(self, folder: str | Path, top_k: int = 3) -> Iterator[dict[str, Any]]:
        """Like :meth:`assign`, for every picture below a folder, sorted by path; `id` is the path relative to the folder."""
        root = Path(folder)
        paths = sorted(
            path for path in root.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES and not path.is_dir()
        )
        for path, item in zip(paths, self.assign(paths, top_k), strict=True):
            yield {**item, "id": path.relative_to(root).as_posix()}

    def assign_uris(self, uris: Iterable[str], top_k: int = 3) -> Iterator[dict[str, Any]]:
        """Like :meth:`assign`, for pictures that the endpoint reads itself, below a place that it allows; `id` is the URI."""

        def send(batch: Sequence[str]) -> list[dict[str, Any]]:
            items = [{"uri": uri, "id": uri} for uri in batch]
            return self._items("/v1/assign", json={"items": items, "top_k": top_k})

        yield from self._in_order(send, _batches(iter(uris), self.batch))

    def assign_embeddings(self, embeddings: Iterable[Sequence[float]], top_k: int = 3) -> Iterator[dict[str, Any]]:
        """Like :meth:`assign`, for ready-made embeddings (lists, or rows of an array); `id` is the position."""

        def send(batch: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
            items = [{"embedding": [float(value) for value in row]} for row in batch]
            return self._items("/v1/assign/embeddings", json={"items": items, "top_k": top_k})

        numbered = enumerate(self._in_order(send, _batches(iter(embeddings), self.batch)))
        yield from ({**item, "id": str(index)} for index, item in numbered)

    def model(self) -> dict[str, Any]:
        """Return the facts about the model in use."""
        return self._ask("GET", "/v1/model").json()

    def clusters(self) -> Iterator[dict[str, Any]]:
        """Yield all clusters; they are requested page by page."""
        offset, total = 0, 1
        while offset < total:
            page = self._ask("GET", f"/v1/clusters?offset={offset}&limit=500").json()
            yield from page["clusters"]
            offset, total = offset + max(1, len(page["clusters"])), page["total"]

    def cluster(self, number: int) -> dict[str, Any]:
        """Return one cluster with its exemplars."""
        return self._ask("GET", f"/v1/clusters/{number}").json()

    def _assign_batch(self, batch: Sequence[tuple[int, str | Path | bytes]], top_k: int) -> list[dict[str, Any]]:
        items: dict[int, dict[str, Any]] = {}
        files: dict[int, bytes] = {}
        for index, picture in batch:
            try:
                files[index] = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
            except OSError as error:
                items[index] = _failed(_code(error), str(error))
        items.update(self._assign_files(files, top_k))
        names = {index: str(index) if isinstance(picture, bytes) else str(picture) for index, picture in batch}
        return [{**items[index], "id": name} for index, name in names.items()]

    def _assign_files(self, files: dict[int, bytes], top_k: int) -> dict[int, dict[str, Any]]:
        if not files:
            return {}
        # The form holds numbers instead of file names, since many names would have to be escaped. The caller puts the names back.
        form = [("files", (str(index), data, "application/octet-stream")) for index, data in files.items()]
        try:
            return dict(zip(files, self._items("/v1/assign", files=form, data={"top_k": str(top_k)}), strict=True))
        except EndpointError as error:
            if error.status != 413:
                raise
            if len(files) == 1:
                return {index: _failed("too_large", str(error)) for index in files}
        # The body was too large for the endpoint, but each half may be small enough.
        numbered = list(files.items())
        halves = (dict(numbered[: len(files) // 2]), dict(numbered[len(files) // 2 :]))
        return {index: item for half in halves for index, item in self._assign_files(half, top_k).items()}

    def _items(self, path: str, **body: Any) -> list[dict[str, Any]]:
        reply = self._ask("POST", path, **body).json()
        return [{**item, "model": reply["model"]} for item in reply["items"]]

    def _in_order(self, send: Any, batches: Iterator[list[Any]]) -> Iterator[dict[str, Any]]:
        """Yield the items of all batches in order.

        `parallel` requests run at a time. A batch is taken from `batches` only when its request can be submitted.
        """
        pending: deque[Future[list[dict[str, Any]]]] = deque()
        with ThreadPoolExecutor(self.parallel) as pool:
            try:
                pending.extend(pool.submit(send, batch) for batch in islice(batches, self.parallel))
                while pending:
                    yield from pending.popleft().result()
                    pending.extend(pool.submit(send, batch) for batch in islice(batches, 1))
            finally:
                for future in pending:
                    future.cancel()

    def _ask(self, method: str, path: str, **body: Any) -> requests.Response:
        started, attempt = time.monotonic(), 0
        headers = {"authorization": f"Bearer {self._token}"} if self._token else {}
        while True:
            attempt += 1
            try:
                reply = self._session.request(method, self.url + path, headers=headers, timeout=self.timeout, **body)
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                failure, pause = (
                    EndpointError(
                        f"{self.url}{path}: no complete answer ({error}); check that the endpoint runs there"
                    ),
                    0.0,
                )
            else:
                if reply.ok:
                    return reply
                failure, pause = _refusal(reply), _seconds(reply.headers.get("retry-after"))
                if reply.status_code not in RETRIED:
                    raise failure
            # Jitter: clients that failed at the same time do not all try again at the same time.
            pause = max(pause, min(LONGEST_PAUSE_S, 0.25 * 2**attempt)) * random.uniform(0.5, 1.0)
            if time.monotonic() - started + pause > self.patience:
                raise failure
            time.sleep(pause)

    @property
    def _session(self) -> requests.Session:
        """The session of the calling thread; each thread keeps its own, so that connections are reused."""
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        session: requests.Session = self._local.session
        return session


def _batches(source: Iterator[T], size: int) -> Iterator[list[T]]:
    while batch := list(islice(source, size)):
        yield batch


def _failed(code: str, message: str) -> dict[str, Any]:
    """Return an item with an error, in the form of the endpoint's items, for a picture that was not sent or not accepted."""
    nothing = dict.fromkeys(("cluster", "name", "confidence", "margin", "outlier"))
    return {**nothing, "top": [], "error": {"code": code, "message": message}, "model": None}


def _code(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing"
    return "forbidden" if isinstance(error, PermissionError) else "failed"


def _refusal(reply: requests.Response) -> EndpointError:
    try:
        message = reply.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = reply.text[:200]
    return EndpointError(f"{reply.url}: {reply.status_code}: {message}", reply.status_code)


def _seconds(header: str | None) -> float:
    return float(header) if header and header.isdigit() else 0.0
