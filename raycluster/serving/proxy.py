"""What Serve's own HTTP proxy must be kept from: it believes some request headers more than strangers deserve.

The proxy answers 500 to an `x-request-id` that is not UTF-8, writes it to its log as it is, and lets headers switch off its timeout and its
notice of clients that hang up. `$RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` = `raycluster.serving.proxy:middlewares` in the
environment of the Ray nodes puts this before it; `raycluster serve` does so by itself.
"""

from __future__ import annotations

import re

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
IMPORT_PATH = "raycluster.serving.proxy:middlewares"

_DROPPED = frozenset(
    {b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"serve-multiplexed-model-id", b"x-session-id"}
)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class TrustNoHeaders:
    """Takes headers away that steer the proxy, and request ids that are more than an id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on without them."""
        if scope["type"] == "http":
            scope["headers"] = [(key, value) for key, value in scope["headers"] if _harmless(key, value)]
        await self._app(scope, receive, send)


def _harmless(key: bytes, value: bytes) -> bool:
    name = key.lower().replace(b"_", b"-")
    if name == b"x-request-id":
        return _REQUEST_ID.fullmatch(value) is not None
    return name not in _DROPPED


def middlewares() -> list[Middleware]:
    """What Serve asks for."""
    return [Middleware(TrustNoHeaders)]
