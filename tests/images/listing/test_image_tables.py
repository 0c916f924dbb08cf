"""Test pictures inside Parquet tables: how they are listed and read, and which tables are refused."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError
from raycluster.images.fetch import fetch, fetch_batch
from raycluster.images.listing import image_tables
from raycluster.images.listing.manifest import list_images
from raycluster.storage.location import locate

LOCAL = StorageConfig()
IMAGES = [b"%d" % i * 10 for i in range(50)]


def write(path: Path, columns: dict[str, object], rows: int = 8) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return path


def listed(*sources: object, labels: str | None = None) -> pa.Table:
    return list_images(tuple(map(str, sources)), LOCAL, labels).rows.read()


def structs(kind: pa.DataType) -> pa.Array:
    kind = pa.struct([("bytes", kind), ("path", pa.string())])
    return pa.array([{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(IMAGES)], kind)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(IMAGES, pa.binary()),
        pa.array(IMAGES, pa.large_binary()),
        structs(pa.binary()),
        structs(pa.large_binary()),
        pa.array(IMAGES, pa.binary()).dictionary_encode(),
    ],
    ids=["binary", "large", "struct", "large-struct", "dictionary"],
)
def test_rows_are_pictures_in_the_order_of_the_table(tmp_path: Path, column: pa.Array) -> None:
    path = write(tmp_path / "t.parquet", {"image": column, "x": list(range(50))})
    table = listed(path, labels="folder")
    assert table["image_id"].to_pylist() == [f"{path}#row={i}" for i in range(50)]
    assert table["uri"].to_pylist() == [f"{path}#row={i}/{path.stat().st_size}" for i in range(50)]
    assert table["size"].null_count == table["label"].null_count == 50
    assert len(set(table["modified"].to_pylist())) == 1
    order = [49, 3, 3, 0, *range(20, 30), 7]
    found = fetch_batch(table["uri"].take(order).to_pylist(), [None] * len(order), LOCAL, 100)
    assert [item.data for item in found] == [IMAGES[i] for i in order]
    assert fetch(f"{path}#row=17", LOCAL, 100).data == IMAGES[17]


def test_ids_and_labels_come_from_the_table(tmp_path: Path) -> None:
    ids = ["z", None, "a"]
    path = write(tmp_path / "t.parquet", {"image": IMAGES[:3], "image_id": ids, "label": [2, 1, None]})
    rows = listed(path).to_pylist()
    assert [(row["image_id"], row["label"]) for row in rows] == [("z", "2"), (f"{path}#row=1", "1"), ("a", None)]


def test_each_picture_has_its_fate(tmp_path: Path) -> None:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = [{"bytes": b"ok"}, None, {"bytes": None, "path": "elsewhere.jpg"}, {"bytes": b""}, {"bytes": b"x" * 101}]
    path = write(tmp_path / "t.parquet", {"image": pa.array(values, struct)}, rows=2)
    uris = listed(path)["uri"].to_pylist()
    found = fetch_batch([*uris, f"{path}#row=5"], [None] * 5 + [None], LOCAL, 100)
    assert [item.status for item in found] == ["ok", "missing", "missing", "empty", "too_large", "changed"]
    assert found[1].error == "the table holds no picture in this row"
    assert found[5].error == "the table has only 5 rows"
    path.write_bytes(path.read_bytes() + b" ")
    assert {item.status for item in fetch_batch(uris, [None] * 5, LOCAL, 100)} == {"changed"}
    (tmp_path / "no.parquet").write_bytes(write(tmp_path / "n.parquet", {"x": [1]}).read_bytes())
    assert fetch(f"{tmp_path}/no.parquet#row=0", LOCAL, 100).status == "failed"
    assert fetch(f"{tmp_path}/absent.parquet#row=0", LOCAL, 100).status == "missing"
    (tmp_path / "text.parquet").write_text("no table")
    assert fetch(f"{tmp_path}/text.parquet#row=0", LOCAL, 100).status == "undecodable"


def test_every_row_group_is_read_once_and_not_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "t.parquet", {"image": [bytes(10)] * 400}, rows=100)
    batches: list[int] = []
    whole = pq.ParquetFile.iter_batches

    def counting(
        self: pq.ParquetFile, *given: object, row_groups: list[int], **named: object
    ) -> Iterator[pa.RecordBatch]:
        for batch in whole(self, *given, row_groups=row_groups, **named):
            batches.extend(row_groups)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counting)
    monkeypatch.setattr(image_tables, "BATCH", 10)
    rows = [5, 105, 106, 199, 399, 5, 312]
    found = fetch_batch([f"{path}#row={i}" for i in rows], [None] * 7, LOCAL, 100)
    assert {item.status for item in found} == {"ok"}
    assert {group: batches.count(group) for group in batches} == {0: 1, 1: 10, 3: 10}


def test_a_damaged_row_group_spoils_no_other(tmp_path: Path) -> None:
    images = [os.urandom(2000) for _ in range(20)]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": images}), path, row_group_size=10, compression="zstd", use_dictionary=False)
    place = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[place : place + 400] = b"\xff" * 400
    path.write_bytes(bytes(content))
    found = fetch_batch([f"{path}#row={i}" for i in range(20)], [None] * 20, LOCAL, 10_000)
    assert [item.status for item in found] == ["ok"] * 10 + ["undecodable"] * 10
    assert str(found[-1].error).startswith("the table is damaged: ")


def test_tables_without_pictures_or_with_two_kinds_are_refused(tmp_path: Path) -> None:
    for name, (columns, message) in {
        "both": ({"image": [b"x"], "uri": ["a.jpg"]}, "has both a column `uri` and a column `image`"),
        "text": ({"image": ["a.jpg"]}, "column `image` holds string; it must hold the bytes of picture files"),
        "numbers": ({"image": [[1, 2]]}, "column `image` holds list"),
        "struct": ({"image": [{"path": "a.jpg"}]}, r"column `image` holds struct<path: string>"),
        "typed": ({"image": [{"bytes": "text"}]}, r"column `image` holds struct<bytes: string>"),
        "none": ({"picture": [b"x"]}, "needs one column `uri`, or in Parquet a column `image`"),
        "zero": ({"image": pa.array([], pa.binary())}, "no pictures"),
        "ids": ({"image": [b"x"], "image_id": [["a"]]}, "column `image_id` holds list"),
        "twice": (
            {"image": [b"x", b"y"], "image_id": ["a", "a"]},
            r"'a' \(2 times: \S+twice.parquet#row=0/\d+, \S+#row=1/",
        ),
    }.items():
        path = write(tmp_path / f"{name}.parquet", columns)
        with pytest.raises(ConfigError, match=message):
            listed(path)


def test_several_tables_keep_their_order(tmp_path: Path) -> None:
    for number in range(10):
        write(
            tmp_path / f"part-{number}.parquet",
            {"image": IMAGES[:3], "image_id": [f"{9 - number}-{i}" for i in range(3)]},
        )
    ids = listed(f"{tmp_path}/part-*.parquet")["image_id"].to_pylist()
    assert ids == [f"{9 - number}-{i}" for number in range(10) for i in range(3)]
    assert listed(f"{tmp_path}/part-{{0..9}}.parquet")["image_id"].to_pylist() == ids


def test_huge_row_groups_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(image_tables, "LARGE_GROUP", 7)
    with caplog.at_level(logging.WARNING):
        listed(write(tmp_path / "t.parquet", {"image": IMAGES}))
    assert "row groups of up to 8 pictures" in caplog.text


def test_tables_in_a_bucket(s3: StorageConfig) -> None:
    place = locate("s3://raycluster-test/tables/t.parquet", s3)
    place.write_table(pa.table({"image": [*IMAGES, None]}), row_group_size=10)
    table = list_images(("s3://raycluster-test/tables/t.parquet",), s3, None).rows.read()
    found = fetch_batch(table["uri"].to_pylist(), [None] * 51, s3, 100)
    assert [item.data for item in found] == [*IMAGES, None]
    assert found[-1].status == "missing"
    place.write_table(pa.table({"image": IMAGES[:3]}))
    assert {item.status for item in fetch_batch(table["uri"].to_pylist(), [None] * 51, s3, 100)} == {"changed"}
