"""The metrics that the endpoint counts. Ray gathers the metrics of all replicas, and `/metrics` returns those of the endpoint."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from ray.serve.metrics import Counter, Gauge, Histogram

SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]
ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
PREFIXES = ("ray_raycluster_", "ray_serve_")
MOST_BYTES = 64 * 2**20


class RequestMetrics:
    """The metrics of an ingress replica. Ray adds application, deployment and replica as labels."""

    def __init__(self) -> None:
        self._requests = Counter("raycluster_requests", "Answered requests.", tag_keys=("route", "status"))
        self._items = Counter(
            "raycluster_items", "Items by their result: ok or the error's code.", tag_keys=("result",)
        )
        self._seconds = Histogram(
            "raycluster_request_seconds",
            "Seconds from a request to its answer.",
            boundaries=SECONDS,
            tag_keys=("route",),
        )
        self._waiting = Gauge("raycluster_waiting_items", "Pictures that are being processed.")
        self._bytes = Gauge("raycluster_waiting_bytes", "Bytes of request bodies in memory.")

    def observe(self, route: str, status: int, seconds: float, results: Iterable[str]) -> None:
        """Count one answered request; `results` holds `ok` or the error's code for each item."""
        self._requests.inc(tags={"route": route, "status": str(status)})
        self._seconds.observe(seconds, tags={"route": route})
        for result in results:
            self._items.inc(tags={"result": result})

    def hold(self, items: int, size: int) -> None:
        """Set the number of items and bytes that the replica holds now."""
        self._waiting.set(items)
        self._bytes.set(size)


class ModelMetrics:
    """The metrics of a model replica."""

    def __init__(self) -> None:
        self._rows = Histogram("raycluster_batch_rows", "Rows of a batch.", boundaries=ROWS)
        self._seconds = Histogram("raycluster_batch_seconds", "Seconds to compute a batch.", boundaries=SECONDS)
        self._model = Gauge("raycluster_model", "1 for the model in use.", tag_keys=("version",))
        self._refused = Counter("raycluster_models_refused", "Models that were offered and refused.")
        self._version = ""

    def batch(self, rows: int, seconds: float) -> None:
        """Count one batch."""
        self._rows.observe(rows)
        self._seconds.observe(seconds)

    def use(self, version: str) -> None:
        """Set the version of the model in use."""
        if self._version not in ("", version):
            self._model.set(0, tags={"version": self._version})
        self._version = version
        self._model.set(1, tags={"version": version})

    def refuse(self) -> None:
        """Count a refused model."""
        self._refused.inc()


def gather(nodes: Iterable[str]) -> str:
    """Return the endpoint's metrics from the metrics agents of the nodes (`host:port`). A node that does not answer is left out."""
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(_read, nodes))
    return "".join(_merged(texts))


def _read(node: str) -> str:
    try:
        with urllib.request.urlopen(f"http://{node}/metrics", timeout=3) as reply:
            return reply.read(MOST_BYTES).decode("utf-8", "replace")
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return ""


def _merged(texts: Iterable[str]) -> Iterator[str]:
    """Yield the lines of the endpoint's metrics. As the format demands, each description comes once, with its samples after it."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        name = ""
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                name = line.split(" ", 3)[2]
                if name.startswith(PREFIXES) and line not in heads.setdefault(name, []):
                    heads[name].append(line)
            elif name.startswith(PREFIXES):
                samples.setdefault(name, []).append(line)
    for name, lines in samples.items():
        yield from (f"{line}\n" for line in [*heads.get(name, []), *lines])
