"""Test that a tar is read once: what was found in it is kept, until its size, ETag or time of change differs."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError
from raycluster.images.listing.known_tars import forget_tars
from raycluster.images.listing.manifest import Listing, list_images
from raycluster.storage.location import Location, locate


def tar(names: list[str], content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(params=["disk", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder."""
    if request.param == "disk":
        return locate(str(tmp_path))
    storage: StorageConfig = request.getfixturevalue("s3")
    return locate(f"s3://raycluster-test/known-{tmp_path.name}-{id(tmp_path)}", storage)


def listed(root: Location, labels: str | None = "folder") -> Listing:
    return list_images((f"{root.uri}/shards/*.tar",), root.options, labels, known_tars=root / "known")


def damage(file: Location) -> None:
    """Replace the content of a tar, so that reading it would fail. On a disk, its size and time of change stay."""
    if file.scheme == "file":
        before = os.stat(file.path)
        file.write_bytes(b"x" * before.st_size)
        os.utime(file.path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_known_tar_is_not_read_again_and_a_changed_one_is(root: Location) -> None:
    for i in range(3):
        (root / f"shards/{i}.tar").write_bytes(tar([f"cat/{i}.jpg", "dog/x.png", "dog/x.txt"], b"picture"))
    first = listed(root)
    assert len(first.rows) == 6
    assert first.other_files == 3
    kept = {file.name: file.read_bytes() for file in (root / "known").list()}
    assert kept.keys() == first.kept_tars
    assert len(kept) == 3
    if root.scheme == "file":
        damage(root / "shards/0.tar")
        damage(root / "shards/1.tar")
    again = listed(root)
    assert again.rows.read().equals(first.rows.read())
    assert (again.other_files, again.kept_tars) == (3, first.kept_tars)

    (root / "shards/1.tar").write_bytes(tar(["cat/1.jpg", "new/y.jpg", "dog/x.txt"], b"picture"))
    changed = listed(root)
    assert [row["image_id"] for row in changed.rows.read().to_pylist()] == [
        "0/cat/0",
        "0/dog/x",
        "1/cat/1",
        "1/new/y",
        "2/cat/2",
        "2/dog/x",
    ]
    assert len(changed.kept_tars & first.kept_tars) == 2
    forget_tars(root / "known", changed.kept_tars)
    assert {file.name for file in (root / "known").list()} == changed.kept_tars

    if root.scheme == "file":
        with pytest.raises(ConfigError, match=r"0\.tar is no tar"):
            listed(root, labels=None)
    else:
        assert listed(root, labels=None).rows.read()["label"].null_count == 6


def test_another_tar_of_the_same_size_on_s3_has_another_etag(s3: StorageConfig, tmp_path: Path) -> None:
    root = locate(f"s3://raycluster-test/etag-{tmp_path.name}-{id(tmp_path)}", s3)
    for name in ("a", "b"):
        (root / "shards/0.tar").write_bytes(tar([f"{name}.jpg"], b"picture"))
        assert listed(root).rows.read()["image_id"].to_pylist() == [f"0/{name}"]


def test_a_damaged_tar_is_not_kept(root: Location) -> None:
    (root / "shards/0.tar").write_bytes(tar(["a.jpg"], b"picture")[:700])
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"0\.tar (is no tar|cannot be read)"):
            listed(root)
    assert (root / "known").list() == []
