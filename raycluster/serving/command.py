"""`raycluster serve`: run the endpoint on this machine until it is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve

from raycluster.compute.connect import connect
from raycluster.errors import ConfigError
from raycluster.model.files import model_folder
from raycluster.serving import proxy
from raycluster.serving.access import is_loopback
from raycluster.serving.app import build
from raycluster.serving.settings import ServeSettings
from raycluster.storage.location import locate

log = logging.getLogger(__name__)

TIMEOUT_S = 120
"""End-to-end timeout of Serve's proxy. It is longer than the service's own timeouts, which answer with an explanation."""


def serve_forever(settings: ServeSettings, host: str, port: int) -> dict[str, Any]:
    """Serve on host and port until SIGINT or SIGTERM; returns the result for the final JSON line.

    Raises :class:`RayclusterError` if the endpoint cannot start.
    """
    if os.environ.get("RAY_ADDRESS"):
        raise ConfigError(
            "RAY_ADDRESS: it names a cluster, but `raycluster serve` is for one machine; unset it, or use "
            "`serve deploy cluster_configs/serve.yaml` on the cluster"
        )
    if is_loopback(host) and not settings.allowed_hosts:
        settings = settings.model_copy(update={"allowed_hosts": ("127.0.0.1", "localhost", "[::1]", host)})
    _check_free(host, port)
    model_folder(locate(settings.run, settings.storage))  # raises at once if there is no model, before Ray is started
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    with running(settings, host, port):
        stop = threading.Event()
        # These handlers must come after Ray has started: Ray sets its own, which end the process with a core dump.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        log.info("serve     %s answers at %s (Ctrl-C ends it)", settings.run, url)
        stop.wait()
    return {"command": "serve", "status": "ok", "url": url, "model": settings.run}


@contextmanager
def running(settings: ServeSettings, host: str, port: int) -> Iterator[None]:
    """Context in which the endpoint runs. It uses the Ray of this process, and starts Ray if necessary."""
    os.environ.setdefault(proxy.VARIABLE, proxy.IMPORT_PATH)
    connect()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    application = build(_fitted(settings, ray.cluster_resources().get("CPU", 1.0)))
    options = {"host": host, "port": port, "request_timeout_s": TIMEOUT_S}
    try:
        serve.start(proxy_location="HeadOnly", http_options=options)
        serve.run(application, name="raycluster")
        yield
    finally:
        serve.shutdown()


def _fitted(settings: ServeSettings, cpus: float) -> ServeSettings:
    """Return the settings with replicas that fit `cpus` cores, where no replicas were given. Serve's own actors reserve no cores."""
    given = settings.model_fields_set
    update: dict[str, Any] = {}
    if "ingress" not in given:
        update["ingress"] = settings.ingress.model_copy(
            update={"max_replicas": 1, "num_cpus": 1.0 if cpus >= 4 else 0.5}
        )
    if "model" not in given:
        most = cpus - (update["ingress"] if update else settings.ingress).num_cpus
        update["model"] = settings.model.model_copy(update={"num_cpus": float(int(most)) if most >= 1 else 0.5})
    return settings.model_copy(update=update)


def _check_free(host: str, port: int) -> None:
    """Raise :class:`ConfigError` if the port is not free. Serve itself would try for a minute and then print a traceback."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"--host {host}, --port {port}: cannot listen there ({error}); choose another host or port"
        ) from None
