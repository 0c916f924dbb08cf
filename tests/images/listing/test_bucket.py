"""Test that the listing of a bucket has every key once, asks for pages side by side, and names what it cannot reach."""

from __future__ import annotations

import bisect
import random
import threading
import time
from collections.abc import Callable

import pytest

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError
from raycluster.images.listing import bucket
from raycluster.images.listing.bucket import Object, Page, halfway, list_objects, list_ranges
from raycluster.images.listing.manifest import list_images
from raycluster.images.listing.walk import call_storage
from raycluster.storage.location import delete_files, locate

LETTERS = "09AZaz-_/. é日😀"


def words(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(LETTERS, k=draw.randint(1, 12))) for _ in range(count)]


def test_halfway_lies_between() -> None:
    draw = random.Random(0)
    made = 0
    for low, high in zip(words(5000, 1), words(5000, 2), strict=True):
        if low == high:
            continue
        low, high = min(low, high), max(low, high)
        middle = halfway(low, high)
        assert middle is None or low < middle < high
        made += middle is not None
        end = halfway(low, None)
        assert end is not None
        assert end > low
    assert made > 4900
    for low, high in (("a", "a "), ("a", "a!"), ("a", "b"), ("a~", "b"), ("\ud7fe", "\ue001"), ("", "\x01")):
        middle = halfway(low, high)
        assert middle is None or low < middle < high
        assert middle is None or middle.encode()
    assert draw


class Server:
    """A server that gives pages of `page` keys in S3's order, and counts the requests."""

    def __init__(self, keys: list[str], page: int = 10, wait: float = 0.0) -> None:
        self.keys, self.page, self.wait = sorted(set(keys)), page, wait
        self.requests, self.now, self.most = 0, 0, 0
        self.lock = threading.Lock()

    def __call__(self, after: str) -> Page:
        with self.lock:
            self.requests, self.now = self.requests + 1, self.now + 1
            self.most = max(self.most, self.now)
        time.sleep(self.wait)
        start = bisect.bisect_right(self.keys, after)
        found = [Object(key, 1, "", 0) for key in self.keys[start : start + self.page]]
        with self.lock:
            self.now -= 1
        return Page(found, start + self.page < len(self.keys))


LAYOUTS: dict[str, Callable[[], list[str]]] = {
    "nothing": list,
    "one page": lambda: [f"p/{i}" for i in range(10)],
    "numbered": lambda: [f"p/img_{i:07d}.jpg" for i in range(3000)],
    "folders of one": lambda: [f"p/user{i:05d}/photo.jpg" for i in range(3000)],
    "random": lambda: [f"p/{word}" for word in words(3000, 3)],
    "one long name": lambda: ["p/" + "a" * i for i in range(1, 900)],
    "Chinese": lambda: [f"p/{chr(0x4E00 + i)}.jpg" for i in range(3000)],
    "beyond surrogates": lambda: [f"p/{chr(c)}" for c in (*range(0xD700, 0xD800), *range(0xE000, 0xE100), 0x1F600)],
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda name: name.replace(" ", "-"))
def test_every_key_comes_once_whatever_it_looks_like(layout: str) -> None:
    keys = LAYOUTS[layout]()
    server = Server(keys)
    found = [each.key for page in list_ranges(server, "p/", 8) for each in page]
    assert sorted(found) == server.keys
    assert server.requests <= 3 * -(-len(server.keys) // 10) + 20


def test_pages_are_asked_for_side_by_side_and_a_small_prefix_costs_one_request() -> None:
    server = Server(LAYOUTS["numbered"](), page=10, wait=0.01)
    started = time.perf_counter()
    assert sum(len(page) for page in list_ranges(server, "p/", 16)) == 3000
    assert time.perf_counter() - started < 3000 / 10 * 0.01 / 3
    assert 8 < server.most <= 16
    small = Server([f"p/{i}" for i in range(9)])
    assert len(list(list_ranges(small, "p/", 16))) == small.requests == 1


def test_an_error_of_one_page_ends_the_listing() -> None:
    server = Server(LAYOUTS["numbered"]())

    def failing(after: str) -> Page:
        if after > "p/img_0001":
            raise OSError("AWS Error SlowDown")
        return server(after)

    with pytest.raises(OSError, match="SlowDown"):
        list(list_ranges(failing, "p/", 4))


def test_a_process_that_has_deleted_files_lists_others(s3: StorageConfig) -> None:
    """Both hook into the same client of botocore."""
    root = locate("s3://raycluster-test/deleted-and-listed", s3.model_copy(update={"region": "eu-west-1"}))
    for name in ("a.jpg", "b.jpg"):
        (root / name).write_bytes(b"x")
    delete_files([root / "a.jpg"])
    assert list_images((root.uri,), root.options, None).rows.read()["image_id"].to_pylist() == ["b.jpg"]


def test_s3_pages_make_one_listing(s3: StorageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    root = locate("s3://raycluster-test/pages", s3)
    names = [
        *(f"cat/{i:03d}.jpg" for i in range(40)),
        *(f"dög/ü {i}#?%41.PNG" for i in range(20)),
        "top.jpg",
        "note.txt",
    ]
    for name in names:
        (root / name).write_bytes(name.encode())
    whole = bucket._request
    pages: list[int] = []

    def small(client: object, **parameters: object) -> Page:
        answer = whole(client, MaxKeys=7, **parameters)
        pages.append(len(answer.objects))
        return answer

    monkeypatch.setattr(bucket, "_request", small)
    progress: list[int] = []
    listing = list_images((root.uri,), s3, "folder", progress.append)
    assert max(pages) == 7
    rows = listing.rows.read().to_pylist()
    assert [row["image_id"] for row in rows] == sorted(names[:-1])
    assert sum(progress) == len(rows) == 61
    assert listing.other_files == 1
    assert {row["label"] for row in rows} == {"cat", "dög", None}
    assert [row["size"] for row in rows] == [len(row["image_id"].encode()) for row in rows]
    assert all(len(row["etag"]) == 32 and row["modified"] for row in rows)
    assert rows[0]["uri"] == "s3://raycluster-test/pages/cat/000.jpg"


def test_what_a_listing_cannot_reach_is_named(s3: StorageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match="raycluster-none/photos/ does not exist, nor does the bucket raycluster-none;"
    ):
        list_images(("s3://raycluster-none/photos/",), s3, None)
    with pytest.raises(ConfigError, match=r"s3://raycluster-test/none/ does not exist; give"):
        list_images(("s3://raycluster-test/none/",), s3, None)
    with pytest.raises(ConfigError, match=r"s3://raycluster-none cannot be read: .*NoSuchBucket"):
        list(list_objects(locate("s3://raycluster-none", s3), call_storage))
    nobody = s3.model_copy(update={"anonymous": True})
    with pytest.raises(ConfigError, match=r"s3://raycluster-test cannot be read: .*AccessDenied"):
        list(list_objects(locate("s3://raycluster-test", nobody), call_storage))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    other = s3.model_copy(update={"region": "us-east-2"})  # another region, so that no cached client is used
    with pytest.raises(ConfigError, match=r"cannot be read: .*SignatureDoesNotMatch"):
        list(list_objects(locate("s3://raycluster-test/pages", other), call_storage))
    with pytest.raises(ConfigError, match=r"raycluster-test/pages cannot be read: .*ACCESS_DENIED"):
        list_images(("s3://raycluster-test/pages",), other, None)
