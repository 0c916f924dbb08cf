"""Who may ask, and which places a request may name. Pure functions, but for the file system they ask about links."""

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
from raycluster.images.containers import Part, container_of, part_of
from raycluster.storage import Location, locate

TOKENS_VARIABLE = "RAYCLUSTER_TOKENS"
SHORTEST_TOKEN = 16


class Tokens:
    """Bearer tokens, of which only hashes are kept. Without any, everyone may ask."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._hashes = tuple(hashlib.sha256(token.encode()).digest() for token in tokens)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def admit(self, authorization: bytes | None) -> bool:
        """Whether the value of an `Authorization` header holds one of the tokens; the time taken does not tell which, or how nearly."""
        if not self._hashes:
            return True
        scheme, _, token = (authorization or b"").partition(b" ")
        given = hashlib.sha256(token.strip()).digest()
        # Every hash is compared, whatever came of the one before.
        known = [hmac.compare_digest(given, each) for each in self._hashes]
        return scheme.lower() == b"bearer" and any(known)


def read_tokens(file: str | None) -> Tokens:
    """The tokens of the file (one a line, `#` begins a comment) or, without one, of `$RAYCLUSTER_TOKENS`.

    Raises :class:`ConfigError` for a file that cannot be read or holds none: better no endpoint than an open one.
    """
    if file is None:
        tokens, where = os.environ.get(TOKENS_VARIABLE, "").split(), f"${TOKENS_VARIABLE}"
    else:
        where = f"tokens_file: {file}"
        try:
            lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where} cannot be read ({error}); give a text file with one token a line") from None
        tokens = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not tokens:
            raise ConfigError(f"{where} holds no token; write one a line, or remove the option to ask for none")
    if any(len(token) < SHORTEST_TOKEN for token in tokens):
        raise ConfigError(
            f"{where}: a token is shorter than {SHORTEST_TOKEN} characters; use for instance `openssl rand -hex 32`"
        )
    return Tokens(tokens)


def is_loopback(host: str) -> bool:
    """Whether a host, named or by its address, is this machine and nothing else."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def only_loopback(hosts: Collection[str]) -> bool:
    """Whether an endpoint that answers under these names alone, `raycluster serve` on loopback, is for this machine only."""
    return bool(hosts) and all(map(is_loopback, hosts))


def allowed_locations(prefixes: Iterable[str], storage: StorageConfig) -> tuple[Location, ...]:
    """The places of `allowed_prefixes`; raises :class:`ConfigError` for one that is no place at all."""
    return tuple(locate(prefix, storage) for prefix in prefixes)


def permitted(uri: str, allowed: Iterable[Location], storage: StorageConfig) -> Location | Part | None:
    """What a request's `uri` names, if its file lies below one of the allowed places; None if it does not.

    The file is the container, where `uri` points into a tar or a table. Nothing but `s3://bucket/key` and absolute local
    paths is looked at, so no request makes the server open a connection to a host of its choosing. `.`, `..` and empty
    parts are refused, and links that lead out of the prefix: what is returned names the file with all links resolved, and
    :func:`raycluster.images.fetch.fetch` opens exactly that file. (Who may write below an allowed prefix could still swap
    a folder for a link between the check and the read.)

    Raises :class:`ValueError` if the file is allowed but the address inside it is malformed.
    """
    file = _permitted_file(container_of(uri), allowed, storage)
    part = part_of(uri) if file is not None else None
    return file if file is None or part is None else replace(part, file=file.uri)


def _permitted_file(uri: str, allowed: Iterable[Location], storage: StorageConfig) -> Location | None:
    scheme, path = _split(uri)
    if path is None or any(part in ("", ".", "..") for part in path.lstrip("/").split("/")):
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
    """Scheme and path; no path for an address of any other kind, and for characters that no file name should hold."""
    if any(ord(character) < 32 or ord(character) == 127 for character in uri):
        return "", None
    if uri.startswith("s3://"):
        return "s3", uri.removeprefix("s3://")
    path = uri.removeprefix("file://")
    return ("file", path) if path.startswith("/") and not path.startswith("//") else ("", None)
