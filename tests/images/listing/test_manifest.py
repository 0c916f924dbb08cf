"""Test the manifest: what is listed from folders and lists, how rows are numbered, and what changes the digest."""

import datetime
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError
from raycluster.images.listing.manifest import Listing, content_digest, grown_only, list_images, number_rows
from raycluster.tables.schemas import MANIFEST

LOCAL = StorageConfig()


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def listed(*sources: object, labels: str | None = None) -> Listing:
    return list_images(tuple(str(source) for source in sources), LOCAL, labels)


def ids(listing: Listing) -> list[str]:
    return listing.table["image_id"].to_pylist()


def write_list(path: Path, columns: dict[str, object]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_folder_lists_every_picture_below_it(tmp_path: Path) -> None:
    odd = [
        "with space/a b.jpg",
        "percent%20/100%.png",
        "hash#?/x#1.gif",
        "größe/日本.webp",
        "back\\slash.bmp",
        "'q\".tif",
    ]
    plain = ["a.JPG", "b.jpeg", "deep/er/c.Tiff", "name.with.dots.jpg"]
    touch(
        tmp_path,
        *odd,
        *plain,
        "notes.txt",
        "no_suffix",
        "raw.heic",
        "jpg",
        ".DS_Store",
        "deep/._a.jpg",
        ".cache/small.jpg",
    )
    listing = listed(tmp_path)
    assert listing.table.schema == MANIFEST.remove(0)
    assert ids(listing) == sorted(odd + plain, key=str.encode)
    assert listing.other_files == 7
    for row in listing.table.to_pylist():
        path = Path(row["uri"])
        assert str(path) == f"{tmp_path}/{row['image_id']}"
        assert row["size"] == len(path.read_bytes())
        seconds = row["modified"] - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        assert seconds // datetime.timedelta(microseconds=1) == path.stat().st_mtime_ns // 1000
        assert row["etag"] is row["label"] is None


def test_links_are_followed_and_dangling_ones_kept(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.jpg", "elsewhere/sub/b.jpg")
    photos = tmp_path / "photos"
    (photos / "same.jpg").symlink_to("a.jpg")
    (photos / "dangling.jpg").symlink_to("/nowhere/x.jpg")
    (photos / "itself.jpg").symlink_to("itself.jpg")
    (photos / "more").symlink_to(tmp_path / "elsewhere")
    (photos / "up").symlink_to(photos)  # a loop that must not be followed forever
    listing = listed(photos)
    assert dict(zip(ids(listing), listing.table["size"].to_pylist(), strict=True)) == {
        "a.jpg": 12,
        "dangling.jpg": None,
        "itself.jpg": None,
        "more/sub/b.jpg": 19,
        "same.jpg": 12,
    }


def test_folder_labels_are_the_parents_name(tmp_path: Path) -> None:
    touch(tmp_path, "top.jpg", "cat/1.jpg", "animals/dog/2.jpg")
    assert listed(tmp_path, labels="folder").table["label"].to_pylist() == ["dog", "cat", None]
    assert listed(tmp_path).table["label"].null_count == 3


def test_single_picture_is_a_source(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "cat/2.jpg")
    (row,) = listed(tmp_path / "cat/1.jpg", labels="folder").table.to_pylist()
    assert (row["image_id"], row["uri"], row["size"]) == ("1.jpg", f"{tmp_path}/cat/1.jpg", 9)


def test_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "good.jpg")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "wb"):
        assert ids(listed(tmp_path)) == ["good.jpg"]
    with (
        open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb"),
        pytest.raises(ConfigError, match=r"caf\\udce9\.jpg' is not UTF-8"),
    ):
        listed(tmp_path)


def test_unusable_sources_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "docs/a.txt", "docs/b.txt", "docs/c.heic", "docs/.d.jpg", "shard.tar")
    (tmp_path / "void").mkdir()
    for source, message in {
        tmp_path / "absent": "absent does not exist",
        tmp_path / "docs": r"no pictures in .*docs \(4 other files: 2 \.txt, 1 \S+, 1 \S+\)",
        tmp_path / "docs/a.txt": r"no pictures in .*a\.txt \(1 other files: 1 \.txt\)",
        tmp_path / "void": r"no pictures in .*void \(it is empty\)",
        tmp_path / "shard.tar": "shard.tar is no tar",
        "shards/{000..099}.tar": "100 of 100 names have no file, the first is /",
        "https://example.org/photos": "https:// is not supported",
    }.items():
        with pytest.raises(ConfigError, match=message):
            listed(source)


def test_parquet_list_resolves_uris_and_keeps_what_it_knows(tmp_path: Path) -> None:
    stamp = datetime.datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=datetime.UTC)
    path = write_list(
        tmp_path / "list.parquet",
        {
            "uri": ["sub/a b%20#.jpg", "./b.jpg", "/abs/c.jpg", "s3://bucket/d.jpg", "file:///e.jpg"],
            "image_id": ["5", "4", "3", "2", None],
            "label": pa.array(["cat", None, "dog", "cat", "NA"]).dictionary_encode(),
            "size": pa.array([1, 2, None, 4, 5], pa.int32()),
            "etag": pa.array(["x", None, None, None, None], pa.large_string()),
            "modified": pa.array([1714979289123456789] * 5, pa.timestamp("ns", tz="UTC")),
            "photographer": ["p"] * 5,
        },
    )
    table = listed(path, labels="folder").table
    assert table.schema == MANIFEST.remove(0)
    assert table["image_id"].to_pylist() == ["2", "3", "4", "5", "file:///e.jpg"]
    assert table["uri"].to_pylist() == [
        "s3://bucket/d.jpg",
        "/abs/c.jpg",
        f"{tmp_path}/b.jpg",
        f"{tmp_path}/sub/a b%20#.jpg",
        "file:///e.jpg",
    ]
    assert table["label"].to_pylist() == ["cat", "dog", None, "cat", "NA"]
    assert table["size"].to_pylist() == [4, None, 2, 1, 5]
    assert table["etag"].to_pylist() == [None, None, None, "x", None]
    assert table["modified"].to_pylist() == [stamp] * 5


def test_csv_list_keeps_ids_as_text_and_only_empty_fields_are_null(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text('uri,image_id,label,size\na.jpg,007,NA,3\n"b,1.jpg",008,,x\n')
    rows = listed(path).table.to_pylist()
    assert [(row["image_id"], row["label"], row["size"]) for row in rows] == [("007", "NA", None), ("008", None, None)]
    assert rows[1]["uri"] == f"{tmp_path}/b,1.jpg"


def test_list_without_labels_takes_the_folder_of_the_uri(tmp_path: Path) -> None:
    uris = ["a.jpg", "./b.jpg", "cat/c.jpg", "s3://bucket/d.jpg", "s3://bucket/x/dog/e.jpg", "/f.jpg", "/y/cow/g.jpg"]
    path = write_list(tmp_path / "list.parquet", {"uri": uris, "image_id": list("1234567")})
    assert listed(path, labels="folder").table["label"].to_pylist() == [None, None, "cat", None, "dog", None, "cow"]
    assert listed(path).table["label"].null_count == 7


def test_numeric_labels_become_text_and_nan_is_unknown(tmp_path: Path) -> None:
    for labels, expected in (
        ([3, None], ["3", None]),
        ([1.0, float("nan")], ["1", None]),
        ([None, None], [None, None]),
    ):
        path = write_list(tmp_path / "list.parquet", {"uri": ["a.jpg", "b.jpg"], "label": labels})
        assert listed(path).table["label"].to_pylist() == expected


def test_unusable_lists_are_refused(tmp_path: Path) -> None:
    write_list(tmp_path / "columns.parquet", {"url": ["a"], "x": [1]})
    write_list(tmp_path / "null.parquet", {"uri": ["a.jpg", None, " "]})
    write_list(tmp_path / "zero.parquet", {"uri": pa.array([], pa.string())})
    write_list(tmp_path / "nested.parquet", {"uri": [["a.jpg"]]})
    (tmp_path / "text.parquet").write_text("not parquet at all")
    good = write_list(tmp_path / "good.parquet", {"uri": ["a.jpg"] * 100}).read_bytes()
    (tmp_path / "footer.parquet").write_bytes(good[:-60] + b"\xff" * 40 + good[-20:])
    (tmp_path / "twice.csv").write_text("uri,uri\na.jpg,b.jpg\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "columns.csv").write_text("path;x\na.jpg;1\n")
    (tmp_path / "ragged.csv").write_text("uri,x\na.jpg\n")
    for name, message in {
        "columns.parquet": "needs one column `uri`, or in Parquet a column `image` with the pictures; found: url, x",
        "null.parquet": "2 rows have no uri, the first is row 2",
        "zero.parquet": "no pictures",
        "nested.parquet": "column `uri` holds list",
        "text.parquet": r"text\.parquet cannot be read: .*Parquet",
        "footer.parquet": r"footer\.parquet cannot be read",
        "twice.csv": "needs one column `uri`.*; found: uri, uri",
        "empty.csv": r"empty\.csv cannot be read: Empty CSV",
        "columns.csv": "needs one column `uri`.*; found: path;x",
        "ragged.csv": "Expected 2 columns, got 1",
    }.items():
        with pytest.raises(ConfigError, match=message):
            listed(tmp_path / name)


def test_several_sources_are_one_listing_and_ids_must_differ(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.jpg", "one/x.txt", "two/b.jpg", "two/y.txt")
    listing = listed(tmp_path / "one", tmp_path / "two")
    assert ids(listing) == ["a.jpg", "b.jpg"]
    assert listing.other_files == 2
    touch(tmp_path, *(f"{folder}/{i}.jpg" for folder in ("one", "two", "three") for i in range(5)))
    with pytest.raises(
        ConfigError,
        match=r"5 image_ids .* '0.jpg' \(3 times: \S+/(one|two)/0.jpg, \S+/(two|three)/0.jpg\), '1.jpg' \(3 times",
    ):
        listed(tmp_path / "one", tmp_path / "two", tmp_path / "three")


def test_malformed_s3_prefix_is_refused() -> None:
    with pytest.raises(ConfigError, match="Empty path component"):
        list_images(("s3://bucket//double/slash",), StorageConfig(endpoint_url="http://127.0.0.1:9", region="x"), None)


def grid(**columns: list[object]) -> pa.Table:
    """A listing of the given columns; the others are null, and uri follows image_id."""
    n = len(columns["image_id"])
    full = {name: columns.get(name, [None] * n) for name in MANIFEST.names[1:]} | {
        "uri": columns.get("uri", [f"/p/{i}" for i in columns["image_id"]])
    }
    return pa.table(full, schema=MANIFEST.remove(0))


def test_row_ids_stay_when_the_prefix_grows_shrinks_or_changes() -> None:
    first = number_rows(grid(image_id=["b", "d", "f"], size=[1, None, 3], etag=["x", None, None]), None, 0)
    assert first.schema == MANIFEST
    assert first["row_id"].to_pylist() == [0, 1, 2]

    grown = number_rows(
        grid(image_id=["a", "b", "c", "d", "f"], size=[9, 1, 9, None, 3], etag=[None, "x"] + [None] * 3), first, 3
    )
    assert grown["row_id"].to_pylist() == [3, 0, 4, 1, 2]
    assert grown_only(first, grown)

    stamp = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    for changed in (
        grid(image_id=["b", "d", "f"], size=[1, 5, 3], etag=["x", None, None]),  # null became a value
        grid(image_id=["b", "d", "f"], size=[1, None, 3], etag=["x", "y", None]),
        grid(image_id=["b", "d", "f"], size=[1, None, 3], etag=["x", None, None], modified=[None, stamp, None]),
        grid(image_id=["b", "d", "f"], uri=["/p/b", "/q/d", "/p/f"], size=[1, None, 3], etag=["x", None, None]),
    ):
        numbered = number_rows(changed, first, 3)
        assert numbered["row_id"].to_pylist() == [0, 3, 2]
        assert not grown_only(first, numbered)

    shrunk = number_rows(grid(image_id=["d"]), first, 3)
    assert shrunk["row_id"].to_pylist() == [1]
    assert not grown_only(first, shrunk)
    relabeled = number_rows(grid(image_id=["d"], label=["cat"]), first, 3)
    assert (relabeled["row_id"].to_pylist(), relabeled["label"].to_pylist()) == ([1], ["cat"])


def test_numbering_survives_chunks_and_parquet(tmp_path: Path) -> None:
    names = [f"{i:05d}" for i in range(1000)]
    manifest = number_rows(grid(image_id=names, size=list(range(1000))), None, 0)
    pq.write_table(manifest, tmp_path / "m.parquet", row_group_size=100)
    previous = pa.concat_tables([pq.read_table(tmp_path / "m.parquet").slice(i, 100) for i in range(900, -1, -100)])
    current = pa.concat_tables(
        [grid(image_id=names[:7], size=list(range(7))), grid(image_id=names[7:], size=list(range(7, 1000)))]
    )
    assert number_rows(current, previous, 1000).equals(manifest)


def test_digest_follows_the_content_and_nothing_else(tmp_path: Path) -> None:
    rows = {"image_id": ["a", "bc", "d"], "size": [1, None, 0], "etag": [None, "", "e"], "label": ["x", None, "z"]}
    manifest = number_rows(grid(**rows), None, 0)
    digest = content_digest(manifest)
    assert len(digest) == 64
    assert int(digest, 16)
    pq.write_table(manifest, tmp_path / "m.parquet")
    doubled = pa.concat_tables([manifest.slice(2), manifest.slice(0, 1), manifest.slice(1, 1)])
    # A value under a null, which a computation may leave there, is no content.
    buffers = [pa.py_buffer(b"\x05"), pa.array([1, 77, 0], pa.int64()).buffers()[1]]
    garbage = manifest.set_column(3, MANIFEST.field("size"), pa.Array.from_buffers(pa.int64(), 3, buffers))
    for same in (
        pq.read_table(tmp_path / "m.parquet"),
        doubled,
        pa.concat_tables([manifest, manifest]).slice(3),
        garbage,
    ):
        assert content_digest(same) == digest
    others = [
        grid(**rows | {"image_id": ["ab", "c", "d"]}),  # the same letters, divided into other ids
        grid(**rows | {"uri": ["/p/a", "/p/bc", "/p/e"]}),
        grid(**rows | {"size": [1, 0, 0]}),
        grid(**rows | {"size": [1, 0, None]}),
        grid(**rows | {"etag": ["", None, "e"]}),
        grid(**rows | {"label": ["x", None, "y"]}),
        grid(**rows | {"modified": [None, None, datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)]}),
    ]
    digests = {content_digest(number_rows(other, None, 0)) for other in others}
    digests |= {content_digest(number_rows(grid(**rows), None, 1)), content_digest(manifest.slice(1)), digest}
    assert len(digests) == len(others) + 3
    assert content_digest(MANIFEST.empty_table()) == content_digest(manifest.slice(0, 0))


def test_rows_that_are_to_be_tried_again_get_new_numbers() -> None:
    first = number_rows(grid(image_id=["a", "b", "c"]), None, 0)
    again = number_rows(grid(image_id=["a", "b", "c", "d"]), first, 3, np.array([1, 9]))
    assert again["row_id"].to_pylist() == [0, 3, 2, 4]


def test_listing_keeps_no_python_object_for_a_row(tmp_path: Path) -> None:
    """A hundred thousand rows would be tens of megabytes as Python objects, but Arrow holds them outside of Python's memory."""
    touch(tmp_path, *(f"{i % 50}/{i}.jpg" for i in range(4000)))
    uris = [f"s3://bucket/{i}.jpg" for i in range(200_000)]
    write_list(tmp_path / "list.parquet", {"uri": uris})
    del uris
    progress: list[int] = []
    tracemalloc.start()
    try:
        folder = list_images((str(tmp_path / "7"),), LOCAL, "folder", progress.append)
        before, _ = tracemalloc.get_traced_memory()
        listing = list_images((str(tmp_path / "list.parquet"), str(tmp_path)), LOCAL, "folder", progress.append)
        table = number_rows(listing.table, None, 0)
        content_digest(table)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (folder.table.num_rows, table.num_rows, sum(progress)) == (80, 204_000, 204_080)
    # numpy holds only the numbers of the rows.
    assert after - before < 3e6
    assert peak - before < 15e6
