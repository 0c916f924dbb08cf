"""Tokens, and the places that a request may name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError
from raycluster.serving.access import Tokens, allowed_locations, permitted, read_tokens

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
            assert found.path.startswith(str(places / "open"))
        assert permitted(uri, (), StorageConfig()) is None


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
