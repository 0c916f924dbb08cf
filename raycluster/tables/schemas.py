"""The Arrow schema of every table a run writes. Formats are a contract: see the README's table of outputs."""

from __future__ import annotations

from typing import Literal, get_args

import pyarrow as pa

Status = Literal["ok", "missing", "forbidden", "empty", "undecodable", "too_large", "unsupported", "changed", "failed"]
STATUSES: tuple[str, ...] = get_args(Status)

MANIFEST = pa.schema(
    [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("modified", pa.timestamp("us", tz="UTC")),
        pa.field("label", pa.string()),
    ]
)

SHARDS = pa.schema(
    [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("content", pa.binary(16)),
        pa.field("image", pa.binary()),
    ]
)
"""Width, height (after the orientation is applied) and `content`, a hash of the bytes, are those of the original. `image` is a picture file,
null unless the status is `ok`. Shards of earlier versions have no `content`."""

ASSIGNMENTS = pa.schema(
    [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("cluster", pa.int32()),
        pa.field("confidence", pa.float32()),
        pa.field("margin", pa.float32()),
        pa.field("runner_up", pa.int32()),
    ]
)

NEW_ASSIGNMENTS = ASSIGNMENTS.append(pa.field("outlier", pa.bool_()))
"""Schema of the assignments of new pictures (`raycluster assign --model`); `outlier` is null where the status is not `ok`."""

_EXEMPLAR = pa.struct(
    [
        pa.field("row_id", pa.int64()),
        pa.field("image_id", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("confidence", pa.float32()),
    ]
)

CLUSTERS = pa.schema(
    [
        pa.field("cluster", pa.int32(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("nouns", pa.list_(pa.string()), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mean_confidence", pa.float32()),
        pa.field("exemplars", pa.list_(_EXEMPLAR), nullable=False),
        pa.field("least_typical", pa.list_(_EXEMPLAR), nullable=False),
    ]
)


def embeddings_schema(dim: int) -> pa.Schema:
    """Schema of the embeddings table for `dim`-dimensional, unnormalised float16 embeddings.

    `content` is a hash of the original's bytes, null if they were not read. Files of earlier versions do not have this column.
    """
    return pa.schema(
        [
            pa.field("row_id", pa.int64(), nullable=False),
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("error", pa.string()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("content", pa.binary(16)),
            pa.field("embedding", pa.list_(pa.float16(), dim)),
        ]
    )


def counterparts_schema(dim: int) -> pa.Schema:
    """Schema of the semantics table: the unit-norm text counterpart of each image."""
    return pa.schema(
        [
            pa.field("row_id", pa.int64(), nullable=False),
            pa.field("counterpart", pa.list_(pa.float16(), dim), nullable=False),
        ]
    )


def nouns_schema(dim: int) -> pa.Schema:
    """Schema of noun tables: the cached vocabulary and the kept nouns (unit-norm float32 embeddings)."""
    return pa.schema(
        [
            pa.field("noun", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), dim), nullable=False),
        ]
    )
