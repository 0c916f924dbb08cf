"""Test addresses of pictures inside larger files: how they are made and parsed, and how those of a batch are grouped."""

from __future__ import annotations

import pytest

from raycluster.config import StorageConfig
from raycluster.images.addresses import GAP, SPAN, Entry, entry_of, member_uri, row_uri, units
from raycluster.images.fetch import fetch, fetch_batch


def test_addresses_say_what_was_meant() -> None:
    assert entry_of(member_uri("s3://b/x y#1.tar", 512, 10, 2048)) == Entry("s3://b/x y#1.tar", 512, 10, 2048)
    assert entry_of(member_uri("/a.TAR", 512, 0, 2048)) == Entry("/a.TAR", 512, 0, 2048)
    assert entry_of(row_uri("a.parquet", 7)) == Entry("a.parquet", 7, 1, None, is_row=True)
    assert entry_of(f"{row_uri('a.parquet', 7)}/99") == Entry("a.parquet", 7, 1, 99, is_row=True)
    for plain in (
        "a.jpg",
        "a#bytes=1-2/3",
        "a.jpg#row=1",
        "x.tar",
        "x.tar#member=a.jpg",
        "s3://b/a.tar/b.jpg",
        "hash#?/x#1.gif",
    ):
        assert entry_of(plain) is None


@pytest.mark.parametrize(
    "fragment",
    [
        ".tar#bytes=",
        ".tar#bytes=5-2/10",
        ".tar#bytes=0-10/10",
        ".tar#bytes=10-9/10",
        ".tar#bytes=-1-2/10",
        ".tar#bytes=0-2/*",
        ".tar#bytes=0-2",
        ".tar#bytes=0-2,4-5/10",
        ".tar#bytes=٠-٢/9",
        ".tar#bytes=0-1/10\n",
        ".tar#bytes= 0-1/10",
        f".tar#bytes=0-{'9' * 30}/{'9' * 31}",
        ".tar#row=1",
        ".parquet#bytes=0-1/2",
        ".parquet#row=",
        ".parquet#row=-1",
        ".parquet#row=1e3",
        ".parquet#row=1/2/3",
        ".parquet#row=1/",
        ".parquet#row=../../etc",
    ],
)
def test_what_only_looks_like_one_is_failed_and_never_opened(fragment: str) -> None:
    with pytest.raises(ValueError, match="not an address inside a"):
        entry_of(f"s3://nowhere/x{fragment}")
    fate = fetch(f"s3://nowhere/x{fragment}", StorageConfig(endpoint_url="http://127.0.0.1:9"), 100)
    assert fate.status == "failed"
    assert "not an address" in str(fate.error)


def test_a_malformed_address_spoils_no_other(tmp_path: object) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")  # type: ignore[operator]
    uris = [f"{tmp_path}/a.jpg", f"{tmp_path}/x.tar#bytes=9-1/5", f"{tmp_path}/a.jpg"]
    assert [item.status for item in fetch_batch(uris, [None] * 3, StorageConfig(), 10)] == ["ok", "failed", "ok"]
    assert fetch_batch(uris[1:2], [None], StorageConfig(), 10)[0].status == "failed"


def test_a_batch_is_grouped_by_file_and_place() -> None:
    def member(first: int, length: int = 100, file: str = "a.tar") -> Entry:
        return Entry(file, first, length, 10**9)

    parts = [
        None,
        member(5000),
        Entry("t.parquet", 9, 1, None, True),
        member(0),
        member(5100 + GAP + 1),
        Entry("t.parquet", 2, 1, None, True),
        member(5000),  # the same picture again
        member(0, file="b.tar"),
    ]
    found = [(unit.file, unit.indices) for unit in units((i, f"u{i}", entry) for i, entry in enumerate(parts))]
    assert found == [
        ("u0", [0]),
        ("a.tar", [3, 1, 6]),
        ("a.tar", [4]),
        ("t.parquet", [5, 2]),
        ("b.tar", [7]),
    ]
    large = [(i, "", member(i * SPAN // 4, SPAN // 4)) for i in range(9)]
    assert [len(unit.indices) for unit in units(large)] == [4, 4, 1]
