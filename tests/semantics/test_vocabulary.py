from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycluster.config import StorageConfig, VocabularyConfig
from raycluster.errors import ArtifactError, ConfigError
from raycluster.semantics import vocabulary
from raycluster.storage import locate

HERE = StorageConfig()


def nouns(**config: Any) -> list[str]:
    return vocabulary.load_nouns(VocabularyConfig(**config), HERE)


def test_the_built_in_list_is_long_clean_and_concrete() -> None:
    found = nouns()
    assert len(found) >= 4000
    assert found == sorted(set(found))
    assert all(noun == noun.strip().lower() and "_" not in noun for noun in found)
    assert {"dog", "car", "sunflower", "butterfly", "grand piano", "stop sign"} <= set(found)
    assert not {"freedom", "idea", "thing", "entity", "happiness"} & set(found)


def test_files_of_nouns(tmp_path: Path) -> None:
    (tmp_path / "n.txt").write_text("# pets\ncat\n\n grey_wolf \ncat\n", encoding="utf-8")
    (tmp_path / "n.csv").write_text("id,noun\n1,cat\n2,dog\n")
    pq.write_table(pa.table({"noun": ["owl", None, "owl"]}), tmp_path / "n.parquet")
    assert nouns(source=str(tmp_path / "n.txt")) == ["cat", "grey wolf"]
    assert nouns(source=str(tmp_path / "n.csv")) == ["cat", "dog"]
    assert nouns(source=str(tmp_path / "n.parquet")) == ["owl"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("n.txt", b"# nothing\n", "holds no noun"),
        ("n.txt", b"caf\xe9\n", "cannot be read as UTF-8"),
        ("n.csv", b"word\ncat\n", "has no column `noun`; it has word"),
        ("n.parquet", b"nothing", "cannot be read"),
        ("n.doc", b"cat", "neither `builtin`, `wordnet` nor"),
        ("gone.txt", None, "does not exist"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"vocabulary\.source: .*{message}"):
        nouns(source=str(tmp_path / name))


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_ready_made_embeddings_become_unit_rows(tmp_path: Path, kind: pa.DataType) -> None:
    rows = np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    table = pa.table({"noun": ["cat", "dog", "cat"], "embedding": pa.array(rows.tolist(), pa.list_(kind))})
    pq.write_table(table, tmp_path / "e.parquet")
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
        ({"noun": ["a", "b"], "embedding": [[1.0], None]}, "all be there"),
    ],
)
def test_bad_embeddings_are_named(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    with pytest.raises(ConfigError, match=message):
        vocabulary.load_noun_embeddings(str(tmp_path / "e.parquet"), HERE)


def test_prompts_are_normalized_averaged_normalized() -> None:
    calls: list[str] = []

    def encode(texts: list[str]) -> np.ndarray:
        calls.extend(texts)
        return np.array([[len(text), text.count("a"), 1.0] for text in texts], np.float32)

    words, prompts = ["cat", "zebra", "emu"], ("a {}", "the {}!")
    embeddings = vocabulary.embed_nouns(words, prompts, encode, batch=4)
    assert sorted(calls) == sorted(p.replace("{}", w) for w in words for p in prompts)
    for word, embedding in zip(words, embeddings, strict=True):
        each = np.array([[len(t), t.count("a"), 1.0] for t in (p.replace("{}", word) for p in prompts)])
        mean = (each / np.linalg.norm(each, axis=1, keepdims=True)).mean(axis=0)
        np.testing.assert_allclose(embedding, mean / np.linalg.norm(mean), rtol=1e-5)


def test_the_cache_is_keyed_by_encoder_list_and_prompts(tmp_path: Path) -> None:
    folder = locate(str(tmp_path))
    key = vocabulary.vocabulary_key(["cat", "dog"], ("a {}",), "e1")
    others = [(["cat"], ("a {}",), "e1"), (["cat", "dog"], ("the {}",), "e1"), (["cat", "dog"], ("a {}",), "e2")]
    assert key not in {vocabulary.vocabulary_key(*other) for other in others}
    assert vocabulary.read_cached(folder, key) is None
    rows = np.eye(2, dtype=np.float32)
    vocabulary.write_cached(folder, key, ["cat", "dog"], rows)
    cached = vocabulary.read_cached(folder, key)
    assert cached is not None
    assert cached[0] == ["cat", "dog"]
    np.testing.assert_array_equal(cached[1], rows)
    file = tmp_path / "nouns" / f"{key}.parquet"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ArtifactError, match="delete the file"):
        vocabulary.read_cached(folder, key)


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAYCLUSTER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert vocabulary.cache_folder(VocabularyConfig(), HERE).path == f"{tmp_path}/raycluster"
    monkeypatch.setenv("RAYCLUSTER_CACHE", "s3://bucket/cache")
    assert vocabulary.cache_folder(VocabularyConfig(), HERE).uri == "s3://bucket/cache"
    assert vocabulary.cache_folder(VocabularyConfig(cache="/c"), HERE).path == "/c"
