"""The middleware around the whole API.

It checks the host and the token of every request, and adds security headers and the model's version to every reply.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raycluster.serving.access import Tokens
from raycluster.serving.requests import Refused

VERSION_HEADER = "x-model-version"
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/openapi.json"})
"""Paths that need no token, because they show nothing of the run."""
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware that refuses a request before any byte of its body is read."""

    def __init__(
        self,
        app: ASGIApp,
        tokens: Tokens,
        hosts: tuple[str, ...],
        version: Callable[[], str | None],
        refuse: Callable[[Refused], ASGIApp],
    ) -> None:
        """Guard `app`.

        `hosts`: names under which the endpoint may be addressed (empty: any name); `version`: returns the last known version of
        the model; `refuse`: makes the reply to a refused request.
        """
        self._app, self._tokens, self._hosts, self._version, self._refuse = app, tokens, hosts, version, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for key, value in _HEADERS.items():
                    headers.setdefault(key, value)
                version = self._version()
                if version is not None:
                    headers.setdefault(VERSION_HEADER, version)
            await send(message)

        refusal = self._judge(scope)
        app = self._app if refusal is None else self._refuse(refusal)
        await app(scope, receive, send_with_headers)

    def _judge(self, scope: Scope) -> Refused | None:
        headers = Headers(scope=scope)
        # Against DNS rebinding: a web page elsewhere can let its own host name resolve to this machine, then read what loopback answers.
        if self._hosts and _name(headers.get("host", "")) not in self._hosts:
            return Refused(
                421,
                "unknown_host",
                "this endpoint does not answer under this host name; see its setting `allowed_hosts`",
            )
        if scope["path"] in OPEN_PATHS:
            return None
        given = next((value for key, value in scope["headers"] if key == b"authorization"), None)
        if self._tokens.admit(given):
            return None
        message = "send the header `Authorization: Bearer <token>` with a token of this endpoint"
        return Refused(401, "unauthorized", message, {"www-authenticate": "Bearer"})


def _name(host: str) -> str:
    """Return the value of a Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()
