"""Test the vocabulary: how nouns and their embeddings are read, which files are refused, and what the cache depends on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycluster.config import StorageConfig, VocabularyConfig
from raycluster.errors import ArtifactError, ConfigError
from raycluster.semantics import vocabulary
from raycluster.storage.location import locate

HERE = StorageConfig()


def nouns(**config: Any) -> list[str]:
    return vocabulary.load_nouns(VocabularyConfig(**config), HERE)


def test_files_of_nouns(tmp_path: Path) -> None:
    (tmp_path / "n.txt").write_text("# pets\ncat\n\n grey_wolf \ncat\n", encoding="utf-8")
    (tmp_path / "n.csv").write_text("id,noun\n1,cat\n2,dog\n")
    pq.write_table(pa.table({"noun": ["owl", None, "owl"]}), tmp_path / "n.parquet")
    assert nouns(source=str(tmp_path / "n.txt")) == ["cat", "grey wolf"]
    assert nouns(source=str(tmp_path / "n.csv")) == ["cat", "dog"]
    assert nouns(source=str(tmp_path / "n.parquet")) == ["owl"]


def test_what_editors_and_tables_leave_around_nouns_is_no_part_of_them(tmp_path: Path) -> None:
    (tmp_path / "n.TXT").write_bytes(b"\xef\xbb\xbfcat\r\n  # note\r\n_\r\nsea__lion \r\n")
    (tmp_path / "n.csv").write_bytes(b"\xef\xbb\xbfnoun\r\nNA\r\n\r\n007\r\n")
    pq.write_table(pa.table({"noun": pa.array(["owl", "emu"]).dictionary_encode()}), tmp_path / "n.parquet")
    assert nouns(source=str(tmp_path / "n.TXT")) == ["cat", "sea lion"]
    assert nouns(source=str(tmp_path / "n.csv")) == ["NA", "007"]
    assert nouns(source=f"file://{tmp_path}/n.parquet") == ["owl", "emu"]


def test_wordnet_as_a_source_gives_unique_nouns_without_underscores(tmp_path: Path) -> None:
    lines = "1 05 n 02 dog 0 domestic_dog 0 000 | a\n2 05 n 02 hot_dog 0 dog 1 000 | b\n"
    (tmp_path / "data.noun").write_text(lines)
    (tmp_path / "index.noun").touch()
    assert nouns(source="wordnet", path=str(tmp_path)) == ["dog", "domestic dog", "hot dog"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("n.txt", b"# nothing\n", "holds no noun"),
        ("n.txt", b"caf\xe9\n", "cannot be read as UTF-8"),
        ("n.csv", b"noun\ncaf\xe9\n", "cannot be read as UTF-8"),
        ("n.csv", b"noun\ncat,dog\n", "cannot be read as UTF-8"),
        ("n.csv", b"", "cannot be read as UTF-8"),
        ("n.csv", b"word\ncat\n", "has no column `noun`, only word; name"),
        ("n.parquet", b"nothing", "cannot be read"),
        ("n.parquet", b"PAR1" + b"\0" * 40 + b"\x10\0\0\0PAR1", "cannot be read"),
        ("n.doc", b"cat", "neither `builtin`, `wordnet` nor"),
        ("gone.txt", None, "does not exist"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"vocabulary\.source: .*{message}"):
        nouns(source=str(tmp_path / name))


def test_a_column_of_lists_is_no_column_of_nouns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"noun": [["cat"]]}), tmp_path / "n.parquet")
    with pytest.raises(ConfigError, match=r"vocabulary\.source: .*n\.parquet cannot be read"):
        nouns(source=str(tmp_path / "n.parquet"))


@pytest.mark.parametrize("lists", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)])
@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_ready_made_embeddings_become_unit_rows(
    tmp_path: Path, kind: pa.DataType, lists: Callable[[pa.DataType], pa.DataType]
) -> None:
    rows = [[3.0, 4.0], [0.0, 2.0], [1.0, 0.0], None]
    embedding = pa.array(rows, pa.list_(pa.float64(), 2)).cast(lists(kind))
    pq.write_table(pa.table({"noun": ["cat", "dog", "cat", None], "embedding": embedding}), tmp_path / "e.parquet")
    found, embeddings = vocabulary.load_noun_embeddings(str(tmp_path / "e.parquet"), HERE)
    assert found == ["cat", "dog"]
    np.testing.assert_allclose(embeddings, [[0.6, 0.8], [0.0, 1.0]], rtol=1e-3)
    assert embeddings.dtype == np.float32


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"word": ["a"]}, "lacks the column embedding and noun"),
        ({"noun": ["a", "b"], "embedding": [[1.0], [1.0, 2.0]]}, "of one length"),
        ({"noun": ["a"], "embedding": [[float("nan")]]}, "zero, NaN or infinite"),
        ({"noun": ["a"], "embedding": [[0.0]]}, "zero, NaN or infinite"),
        ({"noun": ["a"], "embedding": [[1.0, None]]}, "zero, NaN or infinite"),
        ({"noun": ["a"], "embedding": [[float("inf")]]}, "zero, NaN or infinite"),
        ({"noun": ["a"], "embedding": [[1e300]]}, "zero, NaN or infinite"),
        ({"noun": ["a"], "embedding": [[]]}, "zero, NaN or infinite"),
        ({"noun": ["a", "b"], "embedding": [[1.0], None]}, "every noun needs an embedding"),
        ({"noun": [None, ""], "embedding": [[1.0], [1.0]]}, "holds no noun"),
        ({"noun": ["a"], "embedding": [1.0]}, "`embedding` lists of numbers"),
        ({"noun": ["a"], "embedding": ["[1.0]"]}, "`embedding` lists of numbers"),
        ({"noun": ["a"], "embedding": [["x"]]}, "`embedding` lists of numbers"),
        ({"noun": [["a"]], "embedding": [[1.0]]}, "`noun` must be text"),
    ],
)
def test_bad_embeddings_are_named(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    with pytest.raises(ConfigError, match=message):
        vocabulary.load_noun_embeddings(str(tmp_path / "e.parquet"), HERE)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"text", "cannot be read as Parquet"), (b"", "cannot be read as Parquet")],
)
def test_an_absent_or_broken_file_of_embeddings_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "e.parquet"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"vocabulary\.embeddings: {file} {message}"):
        vocabulary.load_noun_embeddings(str(file), HERE)


def test_prompts_are_normalized_averaged_normalized() -> None:
    calls: list[str] = []
    sizes: list[int] = []

    def encode(texts: list[str]) -> np.ndarray:
        calls.extend(texts)
        sizes.append(len(texts))
        return np.array([[len(text), text.count("a"), 1.0] for text in texts], np.float32)

    words, prompts = ["cat", "zebra", "emu"], ("a {}", "the {}!")
    embeddings = vocabulary.embed_nouns(words, prompts, encode, batch=4)
    assert sorted(calls) == sorted(p.replace("{}", w) for w in words for p in prompts)
    assert sizes == [4, 2]
    for word, embedding in zip(words, embeddings, strict=True):
        each = np.array([[len(t), t.count("a"), 1.0] for t in (p.replace("{}", word) for p in prompts)])
        mean = (each / np.linalg.norm(each, axis=1, keepdims=True)).mean(axis=0)
        np.testing.assert_allclose(embedding, mean / np.linalg.norm(mean), rtol=1e-5)


def test_a_batch_holds_one_noun_at_least() -> None:
    sizes: list[int] = []

    def encode(texts: list[str]) -> np.ndarray:
        sizes.append(len(texts))
        return np.ones((len(texts), 4), np.float16)

    embeddings = vocabulary.embed_nouns(["cat", "dog"], ("a {}", "b {}", "c {}"), encode, batch=2)
    assert sizes == [3, 3]
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, np.full((2, 4), 0.5), rtol=1e-6)


def test_a_list_with_repeats_is_encoded_once(tmp_path: Path) -> None:
    (tmp_path / "n.txt").write_text("grey_wolf\ngrey wolf\n  grey  wolf\nowl\n")
    calls: list[str] = []

    def encode(texts: list[str]) -> np.ndarray:
        calls.extend(texts)
        return np.ones((len(texts), 2), np.float32)

    vocabulary.embed_nouns(nouns(source=str(tmp_path / "n.txt")), ("a {}", "the {}"), encode)
    assert calls == ["a grey wolf", "the grey wolf", "a owl", "the owl"]


def test_the_cache_is_keyed_by_encoder_list_and_prompts() -> None:
    key = vocabulary.vocabulary_key(["cat", "dog"], ("a {}",), "e1")
    others = [(["cat"], ("a {}",), "e1"), (["cat", "dog"], ("the {}",), "e1"), (["cat", "dog"], ("a {}",), "e2")]
    assert key not in {vocabulary.vocabulary_key(*other) for other in others}


def test_nouns_are_read_as_written_and_damage_is_found(tmp_path: Path) -> None:
    file, words = locate(str(tmp_path)) / "nouns.parquet", [f"noun {i}" for i in range(3000)]
    rows = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    vocabulary.write_nouns(file, words, np.asfortranarray(rows))
    found, embeddings = vocabulary.read_nouns(file)
    assert found == words
    np.testing.assert_array_equal(embeddings, rows)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ArtifactError, match=r"nouns\.parquet: .* delete the file"):
        vocabulary.read_nouns(file)
    pq.write_table(pa.table({"noun": ["cat"]}), file.path)
    with pytest.raises(ArtifactError, match="delete the file"):
        vocabulary.read_nouns(file)


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAYCLUSTER_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert vocabulary.cache_folder(VocabularyConfig(), HERE).path == f"{tmp_path}/home/.cache/raycluster"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert vocabulary.cache_folder(VocabularyConfig(), HERE).path == f"{tmp_path}/raycluster"
    monkeypatch.setenv("RAYCLUSTER_CACHE", "s3://bucket/cache")
    assert vocabulary.cache_folder(VocabularyConfig(), HERE).uri == "s3://bucket/cache"
    assert vocabulary.cache_folder(VocabularyConfig(cache="/c"), HERE).path == "/c"
