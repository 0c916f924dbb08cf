"""The vocabulary: nouns from a list, a file or WordNet, their embeddings, and the cache that later runs share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from raycluster.config import StorageConfig, VocabularyConfig
from raycluster.errors import ArtifactError, ConfigError
from raycluster.section import fingerprint
from raycluster.semantics.wordnet import load_wordnet
from raycluster.storage.location import Location, locate, read_table, user_cache
from raycluster.tables.rows import unit, vector_column, vectors
from raycluster.tables.schemas import nouns_schema

_LOST = "delete the file and, if it lies in a run folder, the run's folder _stages, and run again"
"""What to do about a file of noun embeddings that cannot be used: they are made again."""


def load_nouns(config: VocabularyConfig, storage: StorageConfig) -> list[str]:
    """Return the unique nouns of `vocabulary:`, in the order of their source; underscores become spaces.

    Raises :class:`ConfigError` for a source that is absent, unreadable or empty.
    """
    if config.source == "builtin":
        found = (files("raycluster.semantics") / "nouns.txt").read_text(encoding="utf-8").splitlines()
    elif config.source == "wordnet":
        found = load_wordnet(config.path)
    else:
        found = _read_file(config.source, storage)
    nouns = list(dict.fromkeys(noun for noun in (" ".join(word.replace("_", " ").split()) for word in found) if noun))
    if not nouns:
        raise ConfigError(
            f"vocabulary.source: {config.source} holds no noun; write one noun per line, or give a column `noun`"
        )
    return nouns


def _read_file(source: str, storage: StorageConfig) -> list[str]:
    file = locate(source, storage)
    suffix = Path(file.name).suffix.lower()
    if suffix not in (".txt", ".csv", ".parquet"):
        raise ConfigError(
            f"vocabulary.source: {source!r} is neither `builtin`, `wordnet` nor a .txt, .csv or .parquet file of nouns; "
            "give one of these"
        )
    if not file.is_file():
        raise ConfigError(f"vocabulary.source: {source} does not exist; give the path of a file of nouns")
    content = file.read_bytes()
    try:
        if suffix == ".txt":
            lines = content.decode("utf-8-sig").splitlines()
            return [line for line in lines if not line.lstrip().startswith("#")]
        data = pa.BufferReader(content)
        as_text = pa.csv.ConvertOptions(
            column_types={"noun": pa.string()}
        )  # otherwise Arrow reads "NA" as null and "007" as 7
        table = pa.csv.read_csv(data, convert_options=as_text) if suffix == ".csv" else pq.read_table(data)
        if "noun" in table.column_names:
            return [noun for noun in table.column("noun").cast(pa.string()).to_pylist() if noun]
    except (UnicodeDecodeError, pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"vocabulary.source: {source} cannot be read as UTF-8 {suffix} ({error}); give an intact file"
        ) from None
    raise ConfigError(
        f"vocabulary.source: {source} has no column `noun`, only {', '.join(table.column_names)}; "
        "name the column of nouns `noun`"
    )


def load_noun_embeddings(uri: str, storage: StorageConfig) -> tuple[list[str], np.ndarray]:
    """Read ready-made noun embeddings, Parquet with `noun` and `embedding`; return nouns and float32 unit rows [M, d].

    If a noun is repeated, its first row counts. Raises :class:`ConfigError` for a file that is absent, unreadable or unusable.
    """
    where, file = f"vocabulary.embeddings: {uri}", locate(uri, storage)
    if not file.is_file():
        raise ConfigError(f"{where} does not exist; give a Parquet file with the columns `noun` and `embedding`")
    try:
        table = read_table([file])
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{where} cannot be read as Parquet ({error}); give an intact Parquet file") from None
    missing = {"noun", "embedding"} - set(table.column_names)
    if missing:
        raise ConfigError(
            f"{where} lacks the column {' and '.join(sorted(missing))}, and has only {', '.join(table.column_names)}; "
            "give both `noun` and `embedding`"
        )
    try:
        nouns = table.column("noun").cast(pa.string()).to_pylist()
        lists = table.column("embedding").cast(pa.list_(pa.float32()))
    except pa.ArrowException as error:
        raise ConfigError(
            f"{where}: `noun` must be text and `embedding` lists of numbers ({error}); write the columns with these types"
        ) from None
    first = list({noun: row for row, noun in reversed(list(enumerate(nouns))) if noun}.values())
    if not first:
        raise ConfigError(f"{where} holds no noun; give one row for each noun")
    rows = [lists[row].values for row in sorted(first)]
    if any(row is None for row in rows) or len({len(row) for row in rows}) != 1:
        raise ConfigError(
            f"{where}: every noun needs an embedding, and all must be of one length; make them with one encoder"
        )
    embeddings = np.stack([row.to_numpy(zero_copy_only=False) for row in rows])
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not norms.all():
        raise ConfigError(f"{where}: some embeddings are zero, NaN or infinite; remove those nouns")
    return [nouns[row] for row in sorted(first)], embeddings / norms


def vocabulary_key(nouns: list[str], prompts: tuple[str, ...], encoder_fingerprint: str) -> str:
    """Return the name that the embeddings of these nouns have in the cache."""
    return fingerprint(nouns, list(prompts), encoder_fingerprint)


def cache_folder(config: VocabularyConfig, storage: StorageConfig) -> Location:
    """Return the folder of shared noun embeddings: `vocabulary.cache`, else `$RAYCLUSTER_CACHE`, else the user's cache folder."""
    chosen = config.cache or os.environ.get("RAYCLUSTER_CACHE")
    return locate(chosen or str(user_cache()), storage)


def embed_nouns(
    nouns: list[str], prompts: tuple[str, ...], encode_texts: Callable[[list[str]], np.ndarray], batch: int = 256
) -> np.ndarray:
    """Return unit embeddings of nouns, float32 [M, d]: the normalized mean of the prompts' normalized embeddings, as in open_clip.

    `encode_texts` takes texts and returns float32 [n, d]. It gets at most `batch` texts at a time, but always all prompts of a noun.
    """
    step = max(1, batch // len(prompts))
    return np.concatenate(list(_pooled(nouns, prompts, encode_texts, step)))


def _pooled(
    nouns: list[str], prompts: tuple[str, ...], encode_texts: Callable[[list[str]], np.ndarray], step: int
) -> Iterator[np.ndarray]:
    for start in range(0, len(nouns), step):
        chunk = nouns[start : start + step]
        texts = [prompt.replace("{}", noun) for noun in chunk for prompt in prompts]
        each = unit(encode_texts(texts)).reshape(len(chunk), len(prompts), -1)
        pooled = unit(each.mean(axis=1))
        if not np.isfinite(pooled).all() or not pooled.any(axis=1).all():
            raise ConfigError(
                f"encoder: the text tower gives an embedding of zeros, NaN or infinity for one of the nouns from {chunk[0]!r} on; "
                "try `encoder.precision: fp32`"
            )
        yield pooled


def read_nouns(file: Location) -> tuple[list[str], np.ndarray]:
    """Return the nouns and embeddings that :func:`write_nouns` wrote; raise :class:`ArtifactError` for a damaged file."""
    try:
        table = read_table([file])
        embeddings = vectors(table)
    except (pa.ArrowInvalid, OSError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{file.uri}: the noun embeddings cannot be read ({error}); {_LOST}") from None
    # Parquet detects few flipped bits. A row that does not have unit length shows such damage.
    norms = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    if table.schema.remove_metadata() != nouns_schema(embeddings.shape[1]) or not (abs(norms - 1) < 1e-3).all():
        raise ArtifactError(f"{file.uri}: the noun embeddings are damaged; {_LOST}")
    return table.column("noun").to_pylist(), embeddings


def write_nouns(file: Location, nouns: list[str], embeddings: np.ndarray) -> None:
    """Write nouns and their unit embeddings [M, d] float32 (schema nouns_schema)."""
    columns = [pa.array(nouns), vector_column(embeddings)]
    file.write_table(pa.table(columns, schema=nouns_schema(embeddings.shape[1])))
