"""Test the manifest: what is listed from folders and lists, how rows are numbered, and what changes the digest."""

import datetime
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError
from raycluster.images.listing.manifest import Listing, list_images
from raycluster.images.listing.numbering import number_rows
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
    return listing.rows.read()["image_id"].to_pylist()


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
    assert listing.rows.read().schema == MANIFEST.remove(0)
    assert ids(listing) == sorted(odd + plain, key=str.encode)
    assert listing.other_files == 7
    for row in listing.rows.read().to_pylist():
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
    assert dict(zip(ids(listing), listing.rows.read()["size"].to_pylist(), strict=True)) == {
        "a.jpg": 12,
        "dangling.jpg": None,
        "itself.jpg": None,
        "more/sub/b.jpg": 19,
        "same.jpg": 12,
    }


def test_folder_labels_are_the_parents_name(tmp_path: Path) -> None:
    touch(tmp_path, "top.jpg", "cat/1.jpg", "animals/dog/2.jpg")
    assert listed(tmp_path, labels="folder").rows.read()["label"].to_pylist() == ["dog", "cat", None]
    assert listed(tmp_path).rows.read()["label"].null_count == 3


def test_paths_are_in_the_order_of_their_characters_although_folders_are_walked(tmp_path: Path) -> None:
    names = ["a.jpg", "a/b.jpg", "a0.jpg", "a/b/c.jpg", "a-b/x.jpg", "a/b.jpg.d/y.jpg", "ü/z.jpg", "Z.jpg", "a /q.jpg"]
    assert ids(listed(touch(tmp_path, *names))) == sorted(names, key=str.encode)


def test_single_picture_is_a_source(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "cat/2.jpg")
    (row,) = listed(tmp_path / "cat/1.jpg", labels="folder").rows.read().to_pylist()
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
    table = listed(path, labels="folder").rows.read()
    assert table.schema == MANIFEST.remove(0)
    assert table["image_id"].to_pylist() == ["5", "4", "3", "2", "file:///e.jpg"]
    assert table["uri"].to_pylist() == [
        f"{tmp_path}/sub/a b%20#.jpg",
        f"{tmp_path}/b.jpg",
        "/abs/c.jpg",
        "s3://bucket/d.jpg",
        "file:///e.jpg",
    ]
    assert table["label"].to_pylist() == ["cat", None, "dog", "cat", "NA"]
    assert table["size"].to_pylist() == [1, 2, None, 4, 5]
    assert table["etag"].to_pylist() == ["x", None, None, None, None]
    assert table["modified"].to_pylist() == [stamp] * 5


def test_a_long_list_is_read_by_row_groups_and_its_bad_row_is_named(tmp_path: Path) -> None:
    uris: list[str | None] = [f"s3://bucket/{(i * 7919) % 10_000}.jpg" for i in range(10_000)]
    pq.write_table(pa.table({"uri": uris}), tmp_path / "list.parquet", row_group_size=700)
    assert listed(tmp_path / "list.parquet").rows.read()["uri"].to_pylist() == uris
    uris[7777] = None
    pq.write_table(pa.table({"uri": uris}), tmp_path / "list.parquet", row_group_size=700)
    with pytest.raises(ConfigError, match=r"list\.parquet: row 7778 has no uri"):
        listed(tmp_path / "list.parquet")


def test_csv_list_keeps_ids_as_text_and_only_empty_fields_are_null(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text('uri,image_id,label,size\na.jpg,007,NA,3\n"b,1.jpg",008,,x\n')
    rows = listed(path).rows.read().to_pylist()
    assert [(row["image_id"], row["label"], row["size"]) for row in rows] == [("007", "NA", None), ("008", None, None)]
    assert rows[1]["uri"] == f"{tmp_path}/b,1.jpg"


def test_list_without_labels_takes_the_folder_of_the_uri(tmp_path: Path) -> None:
    uris = ["a.jpg", "./b.jpg", "cat/c.jpg", "s3://bucket/d.jpg", "s3://bucket/x/dog/e.jpg", "/f.jpg", "/y/cow/g.jpg"]
    path = write_list(tmp_path / "list.parquet", {"uri": uris, "image_id": list("1234567")})
    assert listed(path, labels="folder").rows.read()["label"].to_pylist() == [
        None,
        None,
        "cat",
        None,
        "dog",
        None,
        "cow",
    ]
    assert listed(path).rows.read()["label"].null_count == 7


def test_numeric_labels_become_text_and_nan_is_unknown(tmp_path: Path) -> None:
    for labels, expected in (
        ([3, None], ["3", None]),
        ([1.0, float("nan")], ["1", None]),
        ([None, None], [None, None]),
    ):
        path = write_list(tmp_path / "list.parquet", {"uri": ["a.jpg", "b.jpg"], "label": labels})
        assert listed(path).rows.read()["label"].to_pylist() == expected


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
        "null.parquet": "row 2 has no uri",
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


def test_listing_keeps_no_python_object_for_a_row(tmp_path: Path) -> None:
    """A hundred thousand rows would be tens of megabytes as Python objects, but they lie on the disk."""
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
        listed = number_rows(listing.rows)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(folder.rows), sum(map(len, listed.partitions())), sum(progress)) == (80, 204_000, 204_080)
    # numpy holds only the numbers of the rows.
    assert after - before < 3e6
    assert peak - before < 15e6
