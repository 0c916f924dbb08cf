"""List a bucket in parallel: request pages of keys from several places at once, whatever the keys look like.

S3 lists a thousand keys a request, one request after the other. This module splits a listing into ranges of keys, and each range has
one request in flight at a time. Whenever fewer than `LIST_THREADS` requests are in flight, a range that is known to go on is cut in two
at a string halfway, which need not be a key. That range is not cut again before an answer for one of its halves shows that more keys
follow. The cuts need no folders, and a million folders do no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from raycluster.storage import s3
from raycluster.storage.location import Location
from raycluster.storage.s3_errors import botocore_errors


class Object(NamedTuple):
    """An object as a listing shows it."""

    key: str
    size: int
    etag: str
    modified_us: int
    """Microseconds since 1970 UTC."""


class Page(NamedTuple):
    """The answer to one list request."""

    objects: list[Object]
    more: bool
    """Whether more keys follow."""


@dataclass
class Range:
    """A range of keys that are not listed yet: those after `after`, up to and including `until` (None: to the end)."""

    after: str
    until: str | None
    other: Range | None = None
    """The lower half, if this is the upper half of a range that was cut."""
    goes_on: bool = False
    """Whether an answer since the last cut showed that more keys follow. Only then is the range worth cutting."""


def list_objects(prefix: Location, call_storage: Callable[[Callable[[], Page], str], Page]) -> Iterator[list[Object]]:
    """Yield the objects below a prefix (or bucket), page by page in no order, without keys that end in `/`, which stand for folders.

    `call_storage` calls the storage and retries (:func:`raycluster.images.listing.walk.call_storage`).
    """
    bucket, key = prefix.bucket_and_key
    start = f"{key}/" if key else ""
    client = s3.python_client(prefix.located_options)

    def page(after: str) -> Page:
        return call_storage(
            lambda: _request(client, Bucket=bucket, Prefix=start, StartAfter=after, **s3.payer(prefix.options)),
            prefix.uri,
        )

    for objects in list_ranges(page, start, s3.LIST_THREADS):
        yield [each for each in objects if not each.key.endswith("/")]


def list_ranges(page: Callable[[str], Page], start: str, threads: int) -> Iterator[list[Object]]:
    """Yield all pages in no order, each key once. `page(after)` requests the first keys after that string."""
    with ThreadPoolExecutor(threads) as pool:
        asked: dict[Future[Page], Range] = {pool.submit(page, start): Range(start, None)}
        while asked:
            for future in wait(asked, return_when=FIRST_COMPLETED).done:
                each = asked.pop(future)
                objects, more = future.result()
                inside = [o for o in objects if each.until is None or o.key <= each.until]
                if inside:
                    yield inside
                elif each.other is not None:
                    each.other.goes_on = True  # the upper half is empty, so all keys are in the lower half
                if more and len(inside) == len(objects) and objects[-1].key != each.until:
                    each.after, each.goes_on, each.other = objects[-1].key, True, None
                    asked[pool.submit(page, each.after)] = each
            for new in _cuts(list(asked.values()), threads - len(asked)):
                asked[pool.submit(page, new.after)] = new


def _cuts(ranges: list[Range], free: int) -> Iterator[Range]:
    """Cut in two at most `free` of the ranges that go on, and yield the upper halves."""
    for each in [each for each in ranges if each.goes_on][:free]:
        middle = halfway(each.after, each.until)
        each.goes_on = False
        if middle is not None:
            new = Range(middle, each.until, each)
            each.until = middle
            yield new


def halfway(low: str, high: str | None) -> str | None:
    """Return a string between two others in the order of code points, which is S3's order; None if none is cheap to find."""
    bounded = high is not None
    for place in range(len(low) + 1):
        below = ord(low[place]) if place < len(low) else 0x1F
        above = 0x7F if below < 0x7E else 0x10FFFF
        if bounded and high is not None:
            # Before `place` both strings are equal. `high` has a character here, because otherwise it would not be higher than `low`.
            above = ord(high[place])
        if above == below:
            continue
        if above - below > 1:
            middle = (above + below) // 2
            if 0xD800 <= middle <= 0xDFFF:  # surrogates are not characters
                middle = 0xD7FF if below < 0xD7FF else 0xE000
                if not below < middle < above:
                    return None
            return low[:place] + chr(middle)
        bounded = False
    return None


def _request(client: Any, **parameters: Any) -> Page:
    """Request one page. Raises :class:`OSError`; its text includes the message of AWS."""
    if not parameters["StartAfter"]:
        del parameters["StartAfter"]
    # A second registration under the same id does nothing, so each hook has an id of its own.
    client.meta.events.register_first("before-parse.s3.ListObjectsV2", _parse, unique_id="raycluster-objects")
    with botocore_errors():
        answer = client.list_objects_v2(**parameters)
    objects: list[Object] = answer["Objects"]
    return Page(objects, answer["IsTruncated"] and bool(objects))


def _parse(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object) -> None:
    """Take the objects out of an answer before botocore parses it. For a thousand objects botocore needs 40 ms, this needs 5 ms."""
    if response_dict["status_code"] != 200:
        return
    try:
        root = ElementTree.fromstring(response_dict["body"])
    except ElementTree.ParseError:
        return  # botocore parses it next and raises an error with a message
    space = root.tag.rpartition("}")[0] + "}" if root.tag.startswith("{") else ""
    found = root.findall(f"{space}Contents")
    key, size, etag, modified = (f"{space}{name}" for name in ("Key", "Size", "ETag", "LastModified"))
    decode = unquote_plus if root.findtext(f"{space}EncodingType") == "url" else str
    customized_response_dict["Objects"] = [
        Object(
            decode(item.findtext(key, "")),
            int(item.findtext(size, "0")),
            item.findtext(etag, "").strip('"'),
            round(datetime.fromisoformat(item.findtext(modified, "")).timestamp() * 1e6),
        )
        for item in found
    ]
    root[:] = [item for item in root if item.tag != f"{space}Contents"]
    response_dict["body"] = ElementTree.tostring(root)
