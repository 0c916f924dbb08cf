"""Test the tokens, and the places that a request may name."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError
from raycluster.images.addresses import Entry
from raycluster.images.fetch import fetch
from raycluster.serving.access import Tokens, allowed_locations, permitted, read_tokens
from raycluster.storage.location import Location, locate

LONG = "0123456789abcdef0123"


@pytest.mark.parametrize(
    ("header", "admitted"),
    [
        (f"Bearer {LONG}", True),
        (f"bearer  {LONG} ", True),
        ("Bearer second-token-of-several", True),
        (f"Basic {LONG}", False),
        (LONG, False),
        ("Bearer ", False),
        ("", False),
        (None, False),
        (f"Bearer {LONG}x", False),
        ("Bearer \xff\xfe", False),
    ],
)
def test_tokens(header: str | None, admitted: bool) -> None:
    tokens = Tokens([LONG, "second-token-of-several"])
    assert tokens.admit(header.encode("latin-1") if header is not None else None) is admitted


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYCLUSTER_TOKENS", raising=False)
    assert not read_tokens(None)
    assert read_tokens(None).admit(None)
    monkeypatch.setenv("RAYCLUSTER_TOKENS", f"{LONG} {LONG}2")
    assert read_tokens(None).admit(f"Bearer {LONG}2".encode())
    file = tmp_path / "tokens"
    file.write_text(f"# of the team\n\n{LONG}3\n")
    assert read_tokens(str(file)).admit(f"Bearer {LONG}3".encode())
    assert not read_tokens(str(file)).admit(f"Bearer {LONG}2".encode())


@pytest.mark.parametrize("content", [None, "", "# nothing\n", "short\n", b"\xff\xfe\x00"])
def test_a_token_file_that_is_no_use_is_refused(tmp_path: Path, content: str | bytes | None) -> None:
    file = tmp_path / "tokens"
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError, match="tokens"):
        read_tokens(str(file))


@pytest.fixture
def places(tmp_path: Path) -> Path:
    for name in ("open/deep/in.jpg", "open/..odd.jpg", "secret/out.jpg", "opened/out.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.symlink(tmp_path / "secret", tmp_path / "open/link")
    os.symlink(tmp_path / "open/deep", tmp_path / "open/short")
    os.symlink(tmp_path / "secret/out.jpg", tmp_path / "open/link.jpg")
    os.symlink("loop.jpg", tmp_path / "open/loop.jpg")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("open/deep/in.jpg", True),
        ("open/..odd.jpg", True),
        ("open/short/in.jpg", True),
        ("open/missing.jpg", True),
        ("secret/out.jpg", False),
        ("opened/out.jpg", False),
        ("open/../secret/out.jpg", False),
        ("open/deep/../../secret/out.jpg", False),
        ("open/./deep/in.jpg", False),
        ("open//deep/in.jpg", False),
        ("open/link/out.jpg", False),
        ("open/link.jpg", False),
        ("open", False),
        ("open/", False),
        ("open/a\nb.jpg", False),
        ("open/a\0b.jpg", False),
    ],
)
def test_local_places(places: Path, path: str, allowed: bool) -> None:
    prefixes = allowed_locations([str(places / "open")], StorageConfig())
    for uri in (f"{places}/{path}", f"file://{places}/{path}"):
        found = permitted(uri, prefixes, StorageConfig())
        assert (found is not None) is allowed
        if found is not None:
            assert isinstance(found, Location)
            assert found.path.startswith(str(places / "open"))
        assert permitted(uri, (), StorageConfig()) is None


SIZE = 100


@pytest.fixture
def containers(tmp_path: Path) -> Path:
    """The folders `open` and `secret`, each with tars and a table whose pictures are the folder's name, and links between them."""
    for name in ("open", "secret"):
        folder = tmp_path / name
        (folder / "deep").mkdir(parents=True)
        content = name.encode().ljust(SIZE, b".")
        for file in ("x.tar", "X.TAR", "blob", "deep/x.tar"):
            (folder / file).write_bytes(content)
        pq.write_table(pa.table({"image": pa.array([name.encode()])}), folder / "x.parquet")
    inside, secret = tmp_path / "open", tmp_path / "secret"
    for link, target in {
        "out.tar": secret / "x.tar",
        "out.TAR": secret / "X.TAR",
        "out.parquet": secret / "x.parquet",
        "out": secret,
        "in.tar": inside / "x.tar",
        "in.parquet": inside / "x.parquet",
        "blob.tar": inside / "blob",
        "near": inside / "deep",
        "named.jpg": inside / f"out.tar#bytes=0-5/{SIZE}",
    }.items():
        os.symlink(target, inside / link)
    # The names of these files look like addresses. As a URI such a name always means a picture inside the container.
    (inside / f"out.tar#bytes=0-5/{SIZE}").parent.mkdir()
    (inside / f"out.tar#bytes=0-5/{SIZE}").write_bytes(b"literal")
    (inside / "out.parquet#row=0").write_bytes(b"literal")
    return tmp_path


BYTES, ROW = f"#bytes=0-5/{SIZE}", "#row=0"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (f"x.tar{BYTES}", b"open.."),
        (f"X.TAR{BYTES}", b"open.."),
        (f"in.tar{BYTES}", b"open.."),
        (f"blob.tar{BYTES}", b"open.."),  # the file `blob` has no suffix, but the name of the link counts
        (f"near/x.tar{BYTES}", b"open.."),
        (f"x.parquet{ROW}", b"open"),
        (f"in.parquet{ROW}", b"open"),
        ("named.jpg", b"literal"),  # a link to a file whose name looks like an address is that file
        (f"out.tar{BYTES}", None),
        (f"out.tar#BYTES=0-5/{SIZE}", None),
        (f"out.TAR{BYTES}", None),
        (f"out.parquet{ROW}", None),
        (f"out.parquet{ROW}/1", None),
        (f"out/x.tar{BYTES}", None),
        (f"out/deep/x.tar{BYTES}", None),
        (f"../secret/x.tar{BYTES}", None),
        (f"out.tar#bytes=0-5/{SIZE}#bytes=0-5/{SIZE}", None),
        ("out.tar#bytes=nonsense", None),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_pictures_inside_local_files(containers: Path, scheme: str, path: str, found: bytes | None) -> None:
    """The file that is opened is judged, with all links resolved."""
    prefixes = allowed_locations([str(containers / "open")], StorageConfig())
    place = permitted(f"{scheme}{containers}/open/{path}", prefixes, StorageConfig())
    if found is None:
        assert place is None
        return
    assert place is not None
    file = place.file if isinstance(place, Entry) else place.path
    assert file == os.path.realpath(file)
    assert fetch(place, StorageConfig(), SIZE).data == found


def test_a_percent_sign_is_a_letter_like_any_other(containers: Path) -> None:
    prefixes = allowed_locations([str(containers / "open")], StorageConfig())
    for path in (f"out.tar%23bytes=0-5/{SIZE}", f"%2e%2e/secret/x.tar{BYTES}"):
        place = permitted(f"{containers}/open/{path}", prefixes, StorageConfig())
        assert place is not None
        assert fetch(place, StorageConfig(), SIZE).status == "missing"


def test_a_malformed_address_in_an_allowed_file_is_an_error_of_its_own(containers: Path) -> None:
    prefixes = allowed_locations([str(containers / "open")], StorageConfig())
    with pytest.raises(ValueError, match="not an address inside a tar file"):
        permitted(f"{containers}/open/x.tar#bytes=5-2/10", prefixes, StorageConfig())


def test_pictures_inside_objects(s3: StorageConfig) -> None:
    root = locate("s3://raycluster-test/access", s3)
    (root / "open" / "x.tar").write_bytes(b"open".ljust(SIZE, b"."))
    (root / "secret.tar").write_bytes(b"secret".ljust(SIZE, b"."))
    (root / "open" / "a#1.jpg").write_bytes(b"hash")
    # The last prefix is a folder whose name looks like the beginning of an address inside secret.tar.
    prefixes = allowed_locations([f"{root.uri}/open", f"{root.uri}/secret.tar#bytes=0-5/"], s3)
    for name, found in {f"open/x.tar{BYTES}": b"open..", "open/a#1.jpg": b"hash"}.items():
        place = permitted(f"{root.uri}/{name}", prefixes, s3)
        assert place is not None
        assert fetch(place, s3, SIZE).data == found
    for name in (f"secret.tar{BYTES}", f"open/../secret.tar{BYTES}", f"open{BYTES}"):
        assert permitted(f"{root.uri}/{name}", prefixes, s3) is None


@pytest.mark.parametrize(
    ("uri", "allowed"),
    [
        ("s3://bucket/photos/a.jpg", True),
        ("s3://bucket/photos/deep/a.jpg", True),
        ("s3://bucket/photos-private/a.jpg", False),
        ("s3://bucket/photos", False),
        ("s3://bucket/photos/../secret.jpg", False),
        ("s3://bucket/photos//a.jpg", False),
        ("s3://other/photos/a.jpg", False),
        ("S3://bucket/photos/a.jpg", False),
        ("https://bucket/photos/a.jpg", False),
        ("http://169.254.169.254/latest/meta-data/", False),
        ("http://[fe80::1]/a.jpg", False),
        ("gs://bucket/photos/a.jpg", False),
        ("file://host/photos/a.jpg", False),
        ("//host/photos/a.jpg", False),
        ("photos/a.jpg", False),
        ("~/a.jpg", False),
        ("data:image/png;base64,AAAA", False),
        ("", False),
    ],
)
def test_remote_places(uri: str, allowed: bool) -> None:
    prefixes = allowed_locations(["s3://bucket/photos/"], StorageConfig())
    assert (permitted(uri, prefixes, StorageConfig()) is not None) is allowed


def test_a_prefix_that_is_no_place_is_refused() -> None:
    with pytest.raises(ConfigError, match="not supported"):
        allowed_locations(["https://example.org/"], StorageConfig())
