"""Middleware for Serve's own HTTP proxy, which trusts some request headers too much.

The proxy answers 500 to an `x-request-id` that is not UTF-8, and writes the id to its log unchanged. It also lets headers switch off its
timeout and its detection of clients that hang up. To put this middleware before the proxy, set
`$RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` to `raycluster.serving.proxy:middlewares` in the environment of the Ray nodes.
`raycluster serve` sets it by itself.
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
    """ASGI middleware that removes the headers that control the proxy, and request ids with unexpected characters or length."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on without these headers."""
        if scope["type"] == "http":
            scope["headers"] = [(key, value) for key, value in scope["headers"] if _harmless(key, value)]
        await self._app(scope, receive, send)


def _harmless(key: bytes, value: bytes) -> bool:
    name = key.lower().replace(b"_", b"-")
    if name == b"x-request-id":
        return _REQUEST_ID.fullmatch(value) is not None
    return name not in _DROPPED


def middlewares() -> list[Middleware]:
    """Return the middlewares that Serve puts before its proxy; Serve calls this function."""
    return [Middleware(TrustNoHeaders)]
