"""Test how rows are numbered: numbers stay when a prefix grows, shrinks or changes, and the digest follows the content alone."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from listing_kit import as_table, numbered, spilled

from raycluster.errors import ConfigError
from raycluster.images.listing import duplicates, numbering
from raycluster.images.listing.columns import LISTING
from raycluster.images.listing.content import content_digest
from raycluster.images.listing.duplicates import refuse_duplicates
from raycluster.images.listing.numbering import NumberedListing
from raycluster.images.listing.spill import Spill
from raycluster.storage.location import Location, locate
from raycluster.tables.files import part_files, write_partitions
from raycluster.tables.names import PARTITION_ROWS
from raycluster.tables.schemas import MANIFEST


def grid(**columns: list[object]) -> pa.Table:
    """A listing of the given columns; the others are null, and uri follows image_id."""
    n = len(columns["image_id"])
    full = {name: columns.get(name, [None] * n) for name in MANIFEST.names[1:]} | {
        "uri": columns.get("uri", [f"/p/{i}" for i in columns["image_id"]])
    }
    return pa.table(full, schema=LISTING)


def written(place: Path, listed: NumberedListing) -> list[Location]:
    """The manifest as files."""
    folder = locate(str(place))
    for rows in listed.partitions():
        write_partitions(folder, rows)
    return part_files(folder)


def test_row_ids_stay_when_the_prefix_grows_shrinks_or_changes(tmp_path: Path) -> None:
    listed = numbered(grid(image_id=["b", "d", "f"], size=[1, None, 3], etag=["x", None, None]))
    assert as_table(listed).schema == MANIFEST
    assert listed.row_ids.tolist() == [0, 1, 2]
    first = written(tmp_path, listed)

    same = numbered(grid(image_id=["f", "b", "d"], size=[3, 1, None], etag=[None, "x", None]), first, 3)
    assert same.row_ids.tolist() == [2, 0, 1]
    assert same.unchanged
    assert same.grown_only
    assert as_table(same).equals(as_table(listed))

    grown = numbered(
        grid(image_id=["a", "b", "c", "d", "f"], size=[9, 1, 9, None, 3], etag=[None, "x"] + [None] * 3), first, 3
    )
    assert grown.row_ids.tolist() == [3, 0, 4, 1, 2]
    assert (grown.grown_only, grown.unchanged) == (True, False)
    assert as_table(grown)["image_id"].to_pylist() == ["b", "d", "f", "a", "c"]

    stamp = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    for changed in (
        grid(image_id=["b", "d", "f"], size=[1, 5, 3], etag=["x", None, None]),  # null became a value
        grid(image_id=["b", "d", "f"], size=[1, None, 3], etag=["x", "y", None]),
        grid(image_id=["b", "d", "f"], size=[1, None, 3], etag=["x", None, None], modified=[None, stamp, None]),
        grid(image_id=["b", "d", "f"], uri=["/p/b", "/q/d", "/p/f"], size=[1, None, 3], etag=["x", None, None]),
    ):
        again = numbered(changed, first, 3)
        assert again.row_ids.tolist() == [0, 3, 2]
        assert not again.grown_only

    shrunk = numbered(grid(image_id=["d"]), first, 3)
    assert shrunk.row_ids.tolist() == [1]
    assert not shrunk.grown_only
    relabeled = numbered(
        grid(image_id=["b", "d", "f"], size=[1, None, 3], etag=["x", None, None], label=[None, "cat", None]), first, 3
    )
    assert relabeled.row_ids.tolist() == [0, 1, 2]
    assert (relabeled.grown_only, relabeled.unchanged) == (True, False)
    assert as_table(relabeled)["label"].to_pylist() == [None, "cat", None]


def test_many_rows_in_any_order_become_partitions_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    n = 3 * PARTITION_ROWS + 100
    names = [f"{i:07d}" for i in range(n)]
    first = numbered(grid(image_id=names, size=list(range(n))))
    files = written(tmp_path, first)
    assert len(files) == 4
    assert [len(rows) for rows in first.partitions()] == [PARTITION_ROWS] * 3 + [100]
    order = np.random.default_rng(0).permutation(n)
    order = order[order != 5]  # removed
    shuffled = grid(image_id=[names[i] for i in order] + ["new"], size=[*order.tolist(), 1])
    listed = numbered(shuffled, files, n)
    assert listed.row_ids.tolist() == [*order.tolist(), n]
    assert not listed.grown_only
    rows = as_table(listed)
    assert rows["row_id"].to_pylist() == [*range(5), *range(6, n + 1)]
    assert rows["image_id"].to_pylist() == [*names[:5], *names[6:], "new"]
    assert listed.digest == numbered(shuffled.sort_by("image_id"), files, n).digest


@pytest.mark.parametrize("bits", [0, 1, 4])
def test_rows_with_equal_hashes_are_told_apart(bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hashes of few bits, most rows have the hash of another one."""
    whole = numbering.hash_rows
    weak = lambda rows, columns: whole(rows, columns) & np.uint64(2**bits - 1)  # noqa: E731
    monkeypatch.setattr(numbering, "hash_rows", weak)
    monkeypatch.setattr(duplicates, "hash_rows", weak)
    names = [f"{i:03d}" for i in range(40)]
    files = written(tmp_path, numbered(grid(image_id=names)))
    listing = grid(image_id=[*names[10:], *"abc"])
    listed = numbered(listing, files, 40)
    assert len(set(listed.row_ids.tolist())) == len(listing)
    kept = listed.row_ids[listed.row_ids < 40]
    assert [names[i] for i in kept] == [
        name for name, i in zip(listing["image_id"].to_pylist(), listed.row_ids, strict=True) if i < 40
    ]
    refuse_duplicates(spilled(listing), "images", "remedy")
    with pytest.raises(ConfigError, match=r"images: 2 image_ids .* '011' \(2 times: /p/011, /p/011\), 'b' \(3 times"):
        refuse_duplicates(spilled(pa.concat_tables([listing, grid(image_id=["b", "011", "b"])])), "images", "remedy")


def test_digest_follows_the_content_and_nothing_else() -> None:
    rows = {"image_id": ["a", "bc", "d"], "size": [1, None, 0], "etag": [None, "", "e"], "label": ["x", None, "z"]}
    manifest = as_table(numbered(grid(**rows)))
    digest = content_digest(manifest)
    assert len(digest) == 32
    doubled = pa.concat_tables([manifest.slice(2), manifest.slice(0, 1), manifest.slice(1, 1)])
    # A value under a null, which a computation may leave there, is no content.
    buffers = [pa.py_buffer(b"\x05"), pa.array([1, 77, 0], pa.int64()).buffers()[1]]
    garbage = manifest.set_column(3, MANIFEST.field("size"), pa.Array.from_buffers(pa.int64(), 3, buffers))
    for same in (doubled, pa.concat_tables([manifest, manifest]).slice(3), garbage):
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
    digests = {numbered(other).digest for other in others}
    digests |= {
        numbered(grid(**rows), (), 1).digest,
        numbered(grid(**rows).slice(1)).digest,
        numbered(grid(**rows)).digest,
    }
    assert len(digests) == len(others) + 3


def test_rows_that_are_to_be_tried_again_get_new_numbers(tmp_path: Path) -> None:
    first = written(tmp_path, numbered(grid(image_id=["a", "b", "c"])))
    again = numbered(grid(image_id=["a", "b", "c", "d"]), first, 3, np.array([1, 9]))
    assert again.row_ids.tolist() == [0, 3, 2, 4]
    assert not again.grown_only


def test_a_spill_gives_rows_by_section_and_key_and_by_position() -> None:
    spill = Spill(LISTING)
    spill.append(grid(image_id=["a", "b"]))
    spill.begin_section()
    spill.append(grid(image_id=["y", "z"]), "y")
    spill.append(grid(image_id=["c"]), "c")
    spill.begin_section()
    spill.append(grid(image_id=[str(i) for i in range(5000)]))
    found = ["a", "b", "c", "y", "z", *map(str, range(5000))]
    assert spill.read()["image_id"].to_pylist() == found
    assert len(spill) == 5005
    places = np.array([0, 2, 3, 4, 4100, 4101, 5004])
    assert spill.take(places)["image_id"].to_pylist() == [found[i] for i in places]
