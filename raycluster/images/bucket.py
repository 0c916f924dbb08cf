"""List a bucket in parallel: pages of keys from several places at once, whatever the keys look like.

S3 lists a thousand keys a request, one request after the other. Here a listing is a set of ranges of keys, each followed by
one request at a time; whenever a request less than `LIST_THREADS` is in flight, a range that is known to go on is cut in two
at a string halfway (not necessarily a key). No folders are needed for that, and a million of them do no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, NamedTuple

from raycluster import s3
from raycluster.storage import Location

VAIN = 32
"""Cuts behind which nothing was found, allowed beyond one a page that was."""


class Object(NamedTuple):
    """An object as a listing shows it."""

    key: str
    size: int
    etag: str
    modified_us: int
    """Microseconds since 1970 UTC."""


class Page(NamedTuple):
    """The answer to one request."""

    objects: list[Object]
    more: bool
    """Whether keys follow."""


@dataclass
class Range:
    """The keys after `after` up to `until` (None: to the end) that are not listed yet."""

    after: str
    until: str | None
    goes_on: bool = False
    """Whether a page showed that more keys follow; only then is it worth being cut."""


def list_objects(prefix: Location, ask: Callable[[Callable[[], Page], str], Page]) -> Iterator[list[Object]]:
    """The objects below a prefix (or bucket), page by page in no order; keys that end in `/` stand for folders and are left out.

    `ask` calls the storage patiently (:func:`raycluster.images.walk.ask`).
    """
    bucket, key = prefix.bucket_and_key
    start = f"{key}/" if key else ""
    client = s3.python_client(prefix.located_options)

    def page(after: str) -> Page:
        return ask(
            lambda: _request(client, Bucket=bucket, Prefix=start, StartAfter=after, **s3.payer(prefix.options)),
            prefix.uri,
        )

    for objects in list_ranges(page, start, s3.LIST_THREADS):
        yield [each for each in objects if not each.key.endswith("/")]


def list_ranges(page: Callable[[str], Page], start: str, threads: int) -> Iterator[list[Object]]:
    """All pages from `page(after)`, which gives the first keys after that string; each key once, pages in no order."""
    found, vain = 0, 0
    with ThreadPoolExecutor(threads) as pool:
        whole = Range(start, None)
        asked: dict[Future[Page], Range] = {pool.submit(page, start): whole}
        while asked:
            for future in wait(asked, return_when=FIRST_COMPLETED).done:
                each = asked.pop(future)
                objects, more = future.result()
                inside = [o for o in objects if each.until is None or o.key <= each.until]
                found, vain = found + bool(inside), vain + (not inside)
                if inside:
                    yield inside
                if more and len(inside) == len(objects) and objects[-1].key != each.until:
                    each.after, each.goes_on = objects[-1].key, True
                    asked[pool.submit(page, each.after)] = each
            if vain < VAIN + found:
                for new in _cuts(list(asked.values()), threads - len(asked)):
                    asked[pool.submit(page, new.after)] = new


def _cuts(ranges: list[Range], free: int) -> Iterator[Range]:
    """Cut ranges that go on in two until `free` new ones are made; yields the latter halves."""
    long = [each for each in ranges if each.goes_on]
    while long and free > 0:
        each = long.pop(0)
        middle = halfway(each.after, each.until)
        if middle is None:
            continue
        new = Range(middle, each.until)
        each.until = middle
        long.append(each)
        free -= 1
        yield new


def halfway(low: str, high: str | None) -> str | None:
    """A string between two others in the order of code points, which is S3's; None if there is none to be had cheaply."""
    bounded = high is not None
    for place in range(len(low) + 1):
        below = ord(low[place]) if place < len(low) else 0x1F
        above = 0x7F if below < 0x7E else 0x10FFFF
        if bounded and high is not None:
            # Up to here both are alike; where `high` ends first it would not be the higher one.
            above = ord(high[place])
        if above == below:
            continue
        if above - below > 1:
            middle = (above + below) // 2
            if 0xD800 <= middle <= 0xDFFF:  # not characters
                middle = 0xD7FF if below < 0xD7FF else 0xE000
                if not below < middle < above:
                    return None
            return low[:place] + chr(middle)
        bounded = False
    return None


def _request(client: Any, **parameters: Any) -> Page:
    """One page. Raises :class:`OSError`, whose text names what AWS said."""
    from botocore.exceptions import BotoCoreError, ClientError

    if not parameters["StartAfter"]:
        del parameters["StartAfter"]
    try:
        answer = client.list_objects_v2(**parameters)
    except ClientError as error:
        raise OSError(f"AWS Error {error.response['Error'].get('Code')}: {error}") from error
    except BotoCoreError as error:
        raise OSError(f"AWS Error: {error}") from error
    objects = [
        Object(o["Key"], o["Size"], o.get("ETag", "").strip('"'), round(o["LastModified"].timestamp() * 1e6))
        for o in answer.get("Contents", [])
    ]
    return Page(objects, answer["IsTruncated"] and bool(objects))
