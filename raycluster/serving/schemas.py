"""The bodies of requests and replies as Pydantic models. The OpenAPI description is made from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

ErrorCode = Literal[
    "missing", "forbidden", "empty", "undecodable", "too_large", "unsupported", "changed", "failed",
    "invalid_base64", "wrong_dimension", "out_of_range", "unavailable",
]  # fmt: skip
"""Why an item has no cluster: a status of the batch tables (first line), or an error that only requests have (second line).

Only `unavailable` is worth another try: the storage did not answer.
"""

DEFAULT_TOP_K = 3
ItemId = Annotated[str, Field(max_length=1024)]


def _number(value: object) -> object:
    """Reject true, false and strings. JSON's 3.0 is an integer too, which strict Pydantic refuses; lax Pydantic also takes true and "3"."""
    if isinstance(value, bool | str):
        raise ValueError("give a whole number")
    return value


TopK = Annotated[
    int,
    Field(ge=1, strict=False, description="Number of clusters to return for each item, most probable first."),
    BeforeValidator(_number),
]


class Strict(BaseModel):
    """Base class of the parts of a request; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class PictureItem(Strict):
    """One picture: its bytes in base64, or its address."""

    # Either field may be left out, but null is not allowed.
    image_base64: str = Field(default_factory=str)
    """The encoded picture (JPEG, PNG, WebP, GIF, BMP, TIFF) in standard base64."""
    uri: str = Field(default_factory=str, max_length=4096)
    """`s3://…` or an absolute path, below a prefix that the server allows."""
    id: ItemId | None = None
    """An id that the answer repeats. The default is the item's position."""

    @model_validator(mode="after")
    def _one_source(self) -> PictureItem:
        if len(self.model_fields_set & {"image_base64", "uri"}) != 1:
            raise ValueError("give exactly one of `image_base64` and `uri`")
        return self


class AssignRequest(Strict):
    """Pictures to assign."""

    items: Annotated[list[PictureItem], Field(min_length=1)]
    top_k: TopK = DEFAULT_TOP_K


class EmbeddingItem(Strict):
    """One embedding from the model's encoder."""

    embedding: list[Annotated[float, Field(allow_inf_nan=False)]]
    id: ItemId | None = None
    """An id that the answer repeats. The default is the item's position."""


class EmbeddingsRequest(Strict):
    """Embeddings to assign."""

    items: Annotated[list[EmbeddingItem], Field(min_length=1)]
    top_k: TopK = DEFAULT_TOP_K


class Reply(BaseModel):
    """Base class of the parts of a reply."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class ModelVersion(Reply):
    """Which model answered."""

    version: str | None
    """Changes with every change in the model folder; null while no model is known."""


class Candidate(Reply):
    """A cluster and its probability."""

    cluster: int
    name: str
    confidence: float


class ItemError(Reply):
    """Why an item has no cluster."""

    code: ErrorCode
    message: str


class Assignment(Reply):
    """The result for one item; the results have the order of the request."""

    id: str
    cluster: int | None
    """Null if there is an error; the next four fields are then null too."""
    name: str | None
    confidence: float | None
    """The largest probability."""
    margin: float | None
    """The largest minus the second largest probability."""
    outlier: bool | None
    """Whether the item is unlike anything the model was trained on."""
    top: list[Candidate]
    """The `top_k` most probable clusters; empty if there is an error."""
    error: ItemError | None


class AssignReply(Reply):
    """The answer to a whole request."""

    model: ModelVersion
    items: list[Assignment]


class ClusterSummary(Reply):
    """One cluster."""

    cluster: int
    name: str
    nouns: list[str]
    size: int | None
    """Number of the run's images in the cluster; null until the run has described its clusters."""
    mean_confidence: float | None


class ClustersReply(Reply):
    """One page of the clusters, sorted by number."""

    model: ModelVersion
    total: int
    offset: int
    limit: int
    clusters: list[ClusterSummary]


class Exemplar(Reply):
    """A typical image of a cluster."""

    image_id: str
    confidence: float
    thumbnail: str | None
    """JPEG as a `data:` URI; null if the picture cannot be read (any more)."""


class ClusterReply(ClusterSummary):
    """One cluster and its most typical images."""

    model: ModelVersion
    exemplars: list[Exemplar]


class Refusal(Reply):
    """A model that was offered and refused."""

    run: str
    reason: str
    at: str
    """UTC time, ISO 8601."""


class ModelReply(Reply):
    """The model in use."""

    model: ModelVersion
    folder: str
    method: str
    n_clusters: int
    dim: int
    """Size of an embedding."""
    takes_pictures: bool
    """False for a model trained on ready-made embeddings."""
    encoder: dict[str, Any] | None
    """Name, weights, precision and more facts of the encoder; null for a model trained on ready-made embeddings."""
    device: str
    loaded: str
    """UTC time, ISO 8601."""
    refused: Refusal | None
    """The newest model that was to replace this one but was refused; null if there is none."""
    limits: dict[str, int | float]
    """The limits of one request."""


class HealthReply(Reply):
    """The process answers (`/healthz`), or is ready for requests (`/readyz`)."""

    status: Literal["ok"]
    model: ModelVersion


class Problem(Reply):
    """Why a request has no answer."""

    code: str
    message: str


class ErrorReply(Reply):
    """The body of every reply that is not 200."""

    model: ModelVersion
    error: Problem
