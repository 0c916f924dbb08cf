"""Test pictures inside tars: how they are listed, that few requests read them, and which tars are refused."""

from __future__ import annotations

import io
import os
import re
import tarfile
from pathlib import Path

import pytest

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError
from raycluster.images.fetch import fetch, fetch_batch
from raycluster.images.listing import tars
from raycluster.images.listing.manifest import Listing, list_images
from raycluster.storage.location import locate

LOCAL = StorageConfig()


def tar_bytes(members: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def listed(*sources: object, labels: str | None = None) -> Listing:
    return list_images(tuple(map(str, sources)), LOCAL, labels)


MEMBERS = {
    "b/0002.JPG": b"two",
    "b/0002.cls": b"7\n",
    "b/0002.json": b"{}",
    "0001.jpeg": b"one",
    "0003.png": b"",
    "d.ir/é 4.v2.webp": b"four",
    "d.ir/é 4.txt": b"a caption",
    "0005.gif": b"gif",
    "._0001.jpg": b"AppleDouble",
    "README": b"",
    "x" * 150 + ".jpg": b"long",
}


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_are_pictures_in_the_order_of_the_tar(tmp_path: Path, format: int) -> None:
    path = tmp_path / "train-007.tar"
    path.write_bytes(tar_bytes(MEMBERS, format))
    listing = listed(path, labels="folder")
    rows = listing.rows.read().to_pylist()
    assert [row["image_id"] for row in rows] == [
        f"train-007/{key}" for key in ("b/0002", "0001", "0003", "d.ir/é 4", "x" * 150)
    ]
    assert [row["label"] for row in rows] == ["7", None, None, "d.ir", None]
    assert [row["label"] for row in listed(path).rows.read().to_pylist()] == ["7", None, None, None, None]
    assert [row["size"] for row in rows] == [3, 3, 0, 4, 4]
    assert listing.other_files == 5  # .json .txt .gif, the hidden one and README
    content, size = path.read_bytes(), path.stat().st_size
    for row in rows:
        match = re.fullmatch(rf"{re.escape(str(path))}#bytes=(\d+)-(\d+)/{size}", row["uri"])
        assert match
        data = content[int(match[1]) : int(match[2]) + 1]
        fetched = fetch(row["uri"], LOCAL, 100, row["size"])
        assert (fetched.data or b"") == data
        assert fetched.status == ("ok" if data else "empty")
        assert row["modified"].timestamp() * 1e6 == pytest.approx(path.stat().st_mtime_ns // 1000)


def test_several_tars_by_range_and_glob(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for number in range(12):
        (tmp_path / f"{number:03d}.tar").write_bytes(tar_bytes({"z.jpg": b"z", f"{number}.jpg": b"%d" % number}))
        (tmp_path / "more" / f"m{number}.tar").write_bytes(tar_bytes({f"m{number}.jpg": b"m"}))
    ids = listed(f"{tmp_path}/{{000..011}}.tar").rows.read()["image_id"].to_pylist()
    assert ids == [f"{number:03d}/{name}" for number in range(12) for name in ("z", number)]
    assert listed(f"{tmp_path}/*.tar").rows.read()["image_id"].to_pylist() == ids
    assert len(listed(f"{tmp_path}/0{{03..05}}.tar").rows.read()) == 6
    assert listed(f"{tmp_path}/more/m{{9..11}}.tar").rows.read()["image_id"].to_pylist() == [
        "m9/m9",
        "m10/m10",
        "m11/m11",
    ]
    assert len(listed(f"{tmp_path}/mo*/m?.tar", f"{tmp_path}/00[01].tar").rows.read()) == 14
    for source, message in {
        "0{03..14}.tar": r"3 of 12 names have no file, the first is .*/012\.tar",
        "none{0..9}.tar": "10 of 10 names have no file",
        "none*.tar": r"no file matches .*/none\*\.tar",
        "{5..3}.tar": "must run upwards",
        "{000000..999999}.tar": "at most 100000 files",
        "absent.tar": "absent.tar does not exist",
    }.items():
        with pytest.raises(ConfigError, match=message):
            listed(tmp_path / source)
    with pytest.raises(ConfigError, match=r"12 \.tar.*; to read these shards, give the pattern <folder>/\*\.tar"):
        listed(tmp_path / "more")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].tar").write_bytes(tar_bytes({"x.jpg": b"x"}))
    assert listed(tmp_path / "a[1].tar").rows.read()["image_id"].to_pylist() == ["a[1]/x"]


def test_what_is_no_whole_tar_is_refused(tmp_path: Path) -> None:
    whole = tar_bytes({"a.jpg": b"a" * 5000, "b.jpg": b"b" * 5000, "c.jpg": b"c" * 300})
    end = whole.rstrip(b"\0")
    damaged = bytearray(whole)
    damaged[512 + 5120 + 100] ^= 1  # in the second header
    sparse = tarfile.TarInfo("s.jpg")
    sparse.type = tarfile.SYMTYPE
    sparse.linkname = "a.jpg"
    for name, (content, message) in {
        "text.tar": (b"not a tar, but long enough for a header" * 50, "is no tar"),
        "empty.tar": (b"", "is no tar, or was cut short"),
        "header.tar": (whole[: 512 + 5120 + 100], "cut short|damaged"),
        "data.tar": (whole[: 512 + 5120 + 512 + 2000], r"data\.tar is no tar, or was cut short"),
        "mark.tar": (whole[: len(end) + -len(end) % 512], "was cut short: its end mark is missing"),
        "damaged.tar": (bytes(damaged), "is damaged at byte 5632"),
        "packed.tar": (__import__("gzip").compress(whole), "write it again, uncompressed"),
        "nothing.tar": (tar_bytes({}), "no pictures"),
        "links.tar": (sparse.tobuf() + bytes(1024), r"no pictures in .*1 other files: 1 \.jpg"),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            listed(tmp_path / name)


def test_headers_that_lead_back_end_the_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer Pythons refuse a negative size themselves; older ones would read the same headers forever."""
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf())
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # size −1024
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    (tmp_path / "loop.tar").write_bytes(tar_bytes({"x.jpg": b"x"})[:1024] + header + bytes(10240))
    with pytest.raises(ConfigError, match=r"loop\.tar"):
        listed(tmp_path / "loop.tar")


def test_an_unreadable_tar_is_named(tmp_path: Path) -> None:
    path = tmp_path / "secret.tar"
    path.write_bytes(tar_bytes({"x.jpg": b"x"}))
    path.chmod(0)
    root = os.geteuid() == 0
    if root:  # root may read every file
        os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match="secret"):
            listed(path)
    finally:
        if root:
            os.seteuid(0)


def test_duplicates_are_named_with_two_places(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "s.tar").write_bytes(tar_bytes({"a.jpg": b"a", "b.jpg": b"b"}))
    with pytest.raises(
        ConfigError, match=r"2 image_ids .*'s/a' \(2 times: \S+one/s\.tar#bytes=\S+, \S+two/s\.tar#bytes"
    ):
        listed(tmp_path / "one/s.tar", tmp_path / "two/s.tar")
    (tmp_path / "pair.tar").write_bytes(tar_bytes({"a.jpg": b"a", "a.seg.png": b"mask"}))
    with pytest.raises(ConfigError, match=r"'pair/a' \(2 times"):
        listed(tmp_path / "pair.tar")


def test_a_tar_that_is_another_now_makes_its_pictures_changed(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(tar_bytes({f"{i}.jpg": b"%d" % i for i in range(5)}))
    uris = listed(path).rows.read()["uri"].to_pylist()
    path.write_bytes(path.read_bytes() + bytes(512))
    fates = fetch_batch(uris, [1] * 5, LOCAL, 100)
    assert {fate.status for fate in fates} == {"changed"}
    assert fates[0].error == "the file has 10752 bytes now, 10240 when it was listed"
    path.unlink()
    assert {fate.status for fate in fetch_batch(uris, [1] * 5, LOCAL, 100)} == {"missing"}


def test_members_side_by_side_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {f"{i:03d}.jpg": bytes([i]) * 1000 for i in range(100)} | {"far.jpg": b"f" * 200_000, "last.jpg": b"l"}
    path = tmp_path / "s.tar"
    path.write_bytes(tar_bytes(members))
    table = listed(path).rows.read()
    opened: list[str] = []
    locate_once = __import__("raycluster.images.fetch", fromlist=["locate"]).locate
    monkeypatch.setattr(
        "raycluster.images.fetch.locate", lambda *given: (opened.append(given[0]), locate_once(*given))[1]
    )
    order = [101, *range(99, -1, -1)]  # all but far.jpg, which is too large to be read along with last.jpg
    rows = table.take(order)
    found = fetch_batch(rows["uri"].to_pylist(), rows["size"].to_pylist(), LOCAL, 2000)
    assert [item.data for item in found] == [list(members.values())[i] for i in order]
    assert len(opened) == 2
    every = fetch_batch(table["uri"].to_pylist(), [None] * 102, LOCAL, 2000)
    assert [item.status for item in every] == ["ok"] * 100 + ["too_large", "ok"]


def test_bytes_between_headers_are_skipped(s3: StorageConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tar_bytes({f"{i}.jpg": bytes(3 * 2**20) for i in range(4)} | {"small.png": b"s"})
    place = locate("s3://raycluster-test/tars/big.tar", s3)
    place.write_bytes(content)
    read: list[int] = []

    class Counting(io.BufferedReader):
        def __init__(self, raw: object, size: int) -> None:
            class Raw(io.RawIOBase):
                def readable(self) -> bool:
                    return True

                def seekable(self) -> bool:
                    return True

                def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
                    read.append(len(buffer))
                    return raw.readinto(buffer)  # type: ignore[attr-defined]

                def seek(self, *where: int) -> int:
                    return raw.seek(*where)  # type: ignore[attr-defined]

                def tell(self) -> int:
                    return raw.tell()  # type: ignore[attr-defined]

            super().__init__(Raw(), size)

    monkeypatch.setattr(tars.io, "BufferedReader", Counting)
    table = list_images((place.uri,), s3, None).rows.read()
    assert table.num_rows == 5
    assert sum(read) < len(content) * 0.8
    assert len(read) < 12
    fetched = fetch_batch(table["uri"].to_pylist(), table["size"].to_pylist(), s3, 2**22)
    assert [item.status for item in fetched] == ["ok"] * 5
    assert fetched[-1].data == b"s"
    place.write_bytes(content[: 2 * 2**20])
    with pytest.raises(ConfigError, match=r"big\.tar"):
        list_images((place.uri,), s3, None)
    assert {item.status for item in fetch_batch(table["uri"].to_pylist(), [None] * 5, s3, 2**22)} == {"changed"}
    with pytest.raises(
        ConfigError, match=r"2 of 2 names have no file, the first is s3://raycluster-test/tars/none0\.tar"
    ):
        list_images(("s3://raycluster-test/tars/none{0..1}.tar",), s3, None)
    with pytest.raises(ConfigError, match="a bucket cannot be named by a pattern"):
        list_images(("s3://raycluster-*/tars/a.tar",), s3, None)
