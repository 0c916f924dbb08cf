"""Read the pictures of a request within the limits. Nothing is read, kept or parsed before it is known to be allowed."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from raycluster.serving.schemas import DEFAULT_TOP_K, AssignRequest, ErrorCode
from raycluster.serving.settings import Limits

RETRY_AFTER_S = 1
MAX_FIELDS = 8
"""Maximum number of fields of a form beside its files."""


class Refused(Exception):
    """The whole request is refused: HTTP status, code and message of the reply."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}


def overloaded(what: str) -> Refused:
    """Return a refusal with 503, which tells the client to try again later."""
    return Refused(503, "overloaded", f"{what}; try again later", {"retry-after": str(RETRY_AFTER_S)})


@dataclass(frozen=True)
class Picture:
    """One item of a request, before its picture is fetched or decoded."""

    id: str
    data: bytes | None = None
    """The encoded picture."""
    uri: str | None = None
    fault: tuple[ErrorCode, str] | None = None
    """Code and message of an error that is already known."""


class Gate:
    """Counts the bytes and items that this replica holds. It refuses more than the limits, so that memory and waiting time stay bounded."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.bytes = 0
        self.items = 0

    @contextmanager
    def admit_bytes(self) -> Iterator[Holding]:
        """Context in which one request can take bytes; all are given back at the end."""
        holding = Holding(self, self._limits.max_waiting_bytes)
        try:
            yield holding
        finally:
            self.bytes -= holding.taken

    @contextmanager
    def admit_items(self, count: int) -> Iterator[None]:
        """Context in which `count` more items are worked on.

        Raises :class:`Refused` if that would be too many. If nothing else is worked on, a request of any size is admitted.
        """
        if self.items and self.items + count > self._limits.max_waiting_items:
            raise overloaded(f"{self.items} pictures are being processed")
        self.items += count
        try:
            yield
        finally:
            self.items -= count


class Holding:
    """The bytes that one request holds."""

    def __init__(self, gate: Gate, limit: int) -> None:
        self._gate, self._limit, self.taken = gate, limit, 0

    def take(self, count: int) -> None:
        """Count `count` more bytes. Raises :class:`Refused` if this replica would then hold too many."""
        if self._gate.bytes + count > self._limit:
            raise overloaded("there are too many uploads at once")
        self._gate.bytes += count
        self.taken += count


def media_type(request: Request, *read: str) -> str:
    """Return which of the media types in `read` the body has.

    Raises :class:`Refused` with 415 if it has another one. A compressed body is refused too: it may be a decompression bomb.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in read or request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(
            415,
            "unsupported_media_type",
            f"the media type or encoding is not supported; send {' or '.join(read)}, not compressed",
        )
    return kind


async def read_body(request: Request, limits: Limits, holding: Holding) -> bytes:
    """Return the whole body.

    Raises :class:`Refused` with 408 if it comes too slowly or the client hangs up, 413 if it is too large, 503 if the replica is full.
    """
    announced = request.headers.get("content-length", "")
    too_large = Refused(413, "too_large", f"the body has more than {limits.max_body_bytes} bytes; send fewer pictures")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > limits.max_body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limits.max_body_bytes:
                    raise too_large
                holding.take(len(chunk))
                body += chunk
    except TimeoutError:
        raise Refused(
            408, "too_slow", f"the body did not arrive within {limits.body_seconds:g} seconds; send fewer pictures"
        ) from None
    except ClientDisconnect:
        raise Refused(408, "gone", "the client closed the connection") from None
    return bytes(body)


def parse_json(body: bytes, kind: type[BaseModel], max_items: int, max_top_k: int) -> BaseModel:
    """Return the body as an instance of `kind`, which has `items` and `top_k`. Raises :class:`Refused` with 422 if it is not one."""
    try:
        parsed = kind.model_validate_json(body)
    except ValidationError as error:
        raise Refused(422, "invalid", _explain(error)) from None
    check_counts(len(parsed.items), parsed.top_k, max_items, max_top_k)  # type: ignore[attr-defined]
    return parsed


def check_counts(items: int, top_k: int, max_items: int, max_top_k: int) -> None:
    """Check the number of items and `top_k`. Raises :class:`Refused` with 422 if one is larger than allowed."""
    if items > max_items:
        raise Refused(
            422, "too_many_items", f"the request has {items} items, but at most {max_items} are allowed; split it"
        )
    if top_k > max_top_k:
        raise Refused(422, "invalid", f"top_k: {top_k} is too large; give at most {max_top_k}")


def _explain(error: ValidationError) -> str:
    """Return the first few faults as text. It does not repeat the input: that may be large, and the text may be read by others."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    lines = [f"{'.'.join(str(part) for part in fault['loc']) or 'body'}: {fault['msg']}" for fault in faults[:5]]
    more = f" (and {len(faults) - 5} more)" if len(faults) > 5 else ""
    return _printable("; ".join(lines))[:1000] + more


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "�" for character in text)


def pictures_of(request: AssignRequest, max_image_bytes: int) -> list[Picture]:
    """Return the pictures of a JSON request. An item with invalid or too much base64 gets a fault."""
    return [
        _decoded(item.id if item.id is not None else str(index), item.image_base64, max_image_bytes)
        if "image_base64" in item.model_fields_set
        else Picture(item.id if item.id is not None else str(index), uri=item.uri)
        for index, item in enumerate(request.items)
    ]


def _decoded(name: str, text: str, max_image_bytes: int) -> Picture:
    if len(text) * 3 // 4 > max_image_bytes + 2:
        return Picture(name, fault=("too_large", f"the picture has more than {max_image_bytes} bytes"))
    try:
        return Picture(name, data=base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return Picture(name, fault=("invalid_base64", "image_base64 is not valid base64"))


class _InMemory(MultiPartParser):
    # The body is already in memory, and its size is limited: temporary files on disk would only slow the parser down.
    spool_max_size = 2**40


async def parse_multipart(content_type: str, body: bytes, limits: Limits) -> tuple[list[Picture], int]:
    """Return the pictures and `top_k` of a form that holds one or more `files` and perhaps `top_k`.

    Raises :class:`Refused` with 422 for any other form.
    """

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield body

    headers = Headers({"content-type": content_type})
    try:
        # The parser accepts one file more than allowed, so that too many files can be told from a malformed form.
        form = await _InMemory(headers, chunks(), max_files=limits.max_items + 1, max_fields=MAX_FIELDS).parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise Refused(
                422,
                "too_many_items",
                f"the request has more than the {limits.max_items} files that are allowed; split it",
            ) from None
        raise Refused(422, "invalid", f"body: {_printable(error.message)[:300]}") from None
    files: list[UploadFile] = []
    top_k: int | None = None
    for key, value in form.multi_items():
        if key == "files" and isinstance(value, UploadFile):
            files.append(value)
        elif key == "top_k" and isinstance(value, str) and top_k is None:
            top_k = _integer(value)
        else:
            raise Refused(422, "invalid", "body: the form may hold only files named `files` and one field `top_k`")
    if not files:
        raise Refused(422, "invalid", "files: the form holds no picture; send at least one as a file named `files`")
    wanted = DEFAULT_TOP_K if top_k is None else top_k
    check_counts(len(files), wanted, limits.max_items, limits.max_top_k)
    return [Picture(_name(file.filename, index), data=file.file.read()) for index, file in enumerate(files)], wanted


def _name(filename: str | None, index: int) -> str:
    """Return the item's id: the file's name, or its position. Unpaired surrogates are replaced, since no reply could hold them."""
    return (filename or str(index)).encode("utf-8", "replace").decode()[:1024]


def _integer(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1):
        raise Refused(422, "invalid", "top_k: give a whole number, 1 or more")
    return int(text)
