"""Access control: who may send requests, and which places a request may name."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError
from raycluster.images.addresses import Entry, container_of, entry_of
from raycluster.storage.location import Location, locate

TOKENS_VARIABLE = "RAYCLUSTER_TOKENS"
SHORTEST_TOKEN = 16


class Tokens:
    """Bearer tokens, kept only as hashes. Without any token, everyone may send requests."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._hashes = tuple(hashlib.sha256(token.encode()).digest() for token in tokens)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def admit(self, authorization: bytes | None) -> bool:
        """Return whether the value of an `Authorization` header holds one of the tokens.

        The time this takes does not tell which token it was, or how close a wrong token came.
        """
        if not self._hashes:
            return True
        scheme, _, token = (authorization or b"").partition(b" ")
        given = hashlib.sha256(token.strip()).digest()
        # Every hash is compared, even after a match: the time must not tell which token matched.
        known = [hmac.compare_digest(given, each) for each in self._hashes]
        return scheme.lower() == b"bearer" and any(known)


def read_tokens(file: str | None) -> Tokens:
    """Return the tokens of the file (one a line, `#` begins a comment) or, without a file, of `$RAYCLUSTER_TOKENS`.

    Raises :class:`ConfigError` if the file cannot be read or holds no token, because an endpoint that does not start is
    better than one that is open to everyone. A token that is too short raises it too.
    """
    if file is None:
        tokens, where = os.environ.get(TOKENS_VARIABLE, "").split(), f"${TOKENS_VARIABLE}"
    else:
        where = f"tokens_file: {file}"
        try:
            lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where} cannot be read ({error}); give a text file with one token per line") from None
        tokens = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not tokens:
            raise ConfigError(
                f"{where} holds no token; write one token per line, or remove the option if no token is needed"
            )
    if any(len(token) < SHORTEST_TOKEN for token in tokens):
        raise ConfigError(
            f"{where}: a token is shorter than {SHORTEST_TOKEN} characters; use for instance `openssl rand -hex 32`"
        )
    return Tokens(tokens)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address means this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def only_loopback(hosts: Collection[str]) -> bool:
    """Return whether `hosts`, the names under which an endpoint answers, all mean this machine only.

    `raycluster serve` on loopback sets such names. No names at all mean that the endpoint answers under any, so this returns False.
    """
    return bool(hosts) and all(map(is_loopback, hosts))


def allowed_locations(prefixes: Iterable[str], storage: StorageConfig) -> tuple[Location, ...]:
    """Return the places of `allowed_prefixes`. Raises :class:`ConfigError` for a prefix that is not a place."""
    return tuple(locate(prefix, storage) for prefix in prefixes)


def permitted(uri: str, allowed: Iterable[Location], storage: StorageConfig) -> Location | Entry | None:
    """Return what a request's `uri` names if its file lies below one of the allowed places, else None.

    If `uri` points into a tar or a table, the file is that container. Only `s3://bucket/key` and absolute local paths can
    be allowed, so no request can make the server connect to a host that the request chooses. Paths with `.`, `..` or empty
    parts are refused, and so are links that lead out of the prefix. The returned place names the file with all links
    resolved, and :func:`raycluster.images.fetch.fetch` opens exactly that file. (Somebody who may write below an allowed
    prefix could still replace a folder by a link between the check and the read.)

    Raises :class:`ValueError` if the file is allowed but the address inside it is malformed.
    """
    file = _permitted_file(container_of(uri), allowed, storage)
    entry = entry_of(uri) if file is not None else None
    return file if file is None or entry is None else replace(entry, file=file.uri)


def _permitted_file(uri: str, allowed: Iterable[Location], storage: StorageConfig) -> Location | None:
    scheme, path = _split(uri)
    if path is None or any(entry in ("", ".", "..") for entry in path.lstrip("/").split("/")):
        return None
    for prefix in allowed:
        if prefix.scheme != scheme:
            continue
        if scheme == "s3":
            if path.startswith(prefix.path.rstrip("/") + "/"):
                return Location(path, "s3", storage)
            continue
        real, root = os.path.realpath(path), os.path.realpath(prefix.path)
        if real.startswith(root.rstrip("/") + "/"):
            return Location(real)
    return None


def _split(uri: str) -> tuple[str, str | None]:
    """Return scheme and path. The path is None for any other kind of address, and for an address with control characters."""
    if any(ord(character) < 32 or ord(character) == 127 for character in uri):
        return "", None
    if uri.startswith("s3://"):
        return "s3", uri.removeprefix("s3://")
    path = uri.removeprefix("file://")
    return ("file", path) if path.startswith("/") and not path.startswith("//") else ("", None)
