"""From a request to its pictures, within limits: nothing is read, kept or parsed before it is known to be allowed."""

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

from raycluster.serving.settings import Limits
from raycluster.serving.wire import DEFAULT_TOP_K, AssignRequest, ErrorCode

RETRY_AFTER_S = 1
MAX_FIELDS = 8
"""Form fields beside the files."""


class Refused(Exception):
    """The whole request is refused: its status, and why."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}


def overloaded(what: str) -> Refused:
    """503: come back later."""
    return Refused(503, "overloaded", f"{what}; try again later", {"retry-after": str(RETRY_AFTER_S)})


@dataclass(frozen=True)
class Picture:
    """One item of a request, before anything was decoded."""

    id: str
    data: bytes | None = None
    """The encoded picture."""
    uri: str | None = None
    fault: tuple[ErrorCode, str] | None = None
    """What is wrong with it already."""


class Gate:
    """Counts what this replica holds; over the limit it refuses, so that memory and waiting time stay bounded."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.bytes = 0
        self.items = 0

    @contextmanager
    def admit_bytes(self) -> Iterator[Holding]:
        """Within it, bytes can be taken; at the end all are given back."""
        holding = Holding(self, self._limits.max_waiting_bytes)
        try:
            yield holding
        finally:
            self.bytes -= holding.taken

    @contextmanager
    def admit_items(self, count: int) -> Iterator[None]:
        """Raises :class:`Refused` if so many more would be too many. One request alone is always let in."""
        if self.items and self.items + count > self._limits.max_waiting_items:
            raise overloaded(f"{self.items} pictures are being worked on")
        self.items += count
        try:
            yield
        finally:
            self.items -= count


class Holding:
    """The bytes one request holds."""

    def __init__(self, gate: Gate, limit: int) -> None:
        self._gate, self._limit, self.taken = gate, limit, 0

    def take(self, count: int) -> None:
        """Raises :class:`Refused` if this replica holds too many."""
        if self._gate.bytes + count > self._limit:
            raise overloaded("too many uploads at once")
        self._gate.bytes += count
        self.taken += count


def media_type(request: Request, *read: str) -> str:
    """Which of the media types in `read` the body has; else :class:`Refused` with 415. A compressed body is none: it may be a bomb."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in read or request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "unsupported_media_type", f"send {' or '.join(read)}, not compressed")
    return kind


async def read_body(request: Request, limits: Limits, holding: Holding) -> bytes:
    """The whole body, in time and within the limits; else :class:`Refused` with 408, 413 or 503."""
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
    """The body as a model of `kind`, which has `items` and `top_k`; else :class:`Refused` with 422."""
    try:
        parsed = kind.model_validate_json(body)
    except ValidationError as error:
        raise Refused(422, "invalid", _explain(error)) from None
    check_counts(len(parsed.items), parsed.top_k, max_items, max_top_k)  # type: ignore[attr-defined]
    return parsed


def check_counts(items: int, top_k: int, max_items: int, max_top_k: int) -> None:
    """Raises :class:`Refused` with 422 for more than is allowed."""
    if items > max_items:
        raise Refused(422, "too_many_items", f"{items} items, at most {max_items} are allowed; split the request")
    if top_k > max_top_k:
        raise Refused(422, "invalid", f"top_k: {top_k}, at most {max_top_k} is allowed")


def _explain(error: ValidationError) -> str:
    """The first few faults. What was sent is not repeated: it may be large, and may be read where it must not be."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    lines = [f"{'.'.join(str(part) for part in fault['loc']) or 'body'}: {fault['msg']}" for fault in faults[:5]]
    more = f" (and {len(faults) - 5} more)" if len(faults) > 5 else ""
    return _printable("; ".join(lines))[:1000] + more


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "�" for character in text)


def pictures_of(request: AssignRequest, max_image_bytes: int) -> list[Picture]:
    """The pictures of a JSON request. Base64 that is none becomes the fault of its item."""
    return [
        _decoded(item.id if item.id is not None else str(index), item.image_base64, max_image_bytes)
        if "image_base64" in item.model_fields_set
        else Picture(item.id if item.id is not None else str(index), uri=item.uri)
        for index, item in enumerate(request.items)
    ]


def _decoded(name: str, text: str, max_image_bytes: int) -> Picture:
    if len(text) * 3 // 4 > max_image_bytes + 2:
        return Picture(name, fault=("too_large", f"more than {max_image_bytes} bytes"))
    try:
        return Picture(name, data=base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return Picture(name, fault=("invalid_base64", "image_base64 is not valid base64"))


class _InMemory(MultiPartParser):
    # The body is held, and bounded, already: files on disk would only slow it down.
    spool_max_size = 2**40


async def parse_multipart(content_type: str, body: bytes, limits: Limits) -> tuple[list[Picture], int]:
    """Pictures and top_k of a form with one or more `files` and perhaps `top_k`; else :class:`Refused` with 422."""

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield body

    headers = Headers({"content-type": content_type})
    try:
        # One more than allowed, so that too many can be told from malformed.
        form = await _InMemory(headers, chunks(), max_files=limits.max_items + 1, max_fields=MAX_FIELDS).parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise Refused(
                422, "too_many_items", f"more than {limits.max_items} files are not allowed; split the request"
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
            raise Refused(422, "invalid", "body: the form may hold the files `files` and once the field `top_k`")
    if not files:
        raise Refused(422, "invalid", "files: send at least one picture as the form file `files`")
    wanted = DEFAULT_TOP_K if top_k is None else top_k
    check_counts(len(files), wanted, limits.max_items, limits.max_top_k)
    return [Picture(_name(file.filename, index), data=file.file.read()) for index, file in enumerate(files)], wanted


def _name(filename: str | None, index: int) -> str:
    """A file's name as the item's id; odd character sets can leave half characters, which no reply could hold."""
    return (filename or str(index)).encode("utf-8", "replace").decode()[:1024]


def _integer(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1):
        raise Refused(422, "invalid", "top_k: give a whole number, 1 or more")
    return int(text)
