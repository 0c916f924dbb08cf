"""The settings of the endpoint: the one argument of its application builder. Fast to import: no torch, no Ray."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from raycluster.config import StorageConfig
from raycluster.section import Section


class Limits(Section):
    """Limits of one request and of one ingress replica. Whatever exceeds them is refused before it costs anything."""

    max_items: int = Field(default=64, ge=1, le=1024)
    """Maximum number of pictures in one request."""
    max_embeddings: int = Field(default=1024, ge=1, le=65_536)
    """Maximum number of embeddings in one request."""
    max_top_k: int = Field(default=100, ge=1)
    """Maximum number of clusters that a request may ask for with each item (`top_k`)."""
    max_body_bytes: int = Field(default=64 * 2**20, ge=1024)
    """Maximum number of bytes of a request's body."""
    max_image_bytes: int = Field(default=16 * 2**20, ge=1024)
    """Maximum number of bytes of one encoded picture; the model's own `max_bytes` counts too."""
    max_image_pixels: int = Field(default=50_000_000, ge=1)
    """Maximum number of pixels that a picture's header may announce; the model's own `max_pixels` counts too."""
    body_seconds: float = Field(default=20.0, gt=0)
    """Seconds in which the whole body must arrive."""
    fetch_seconds: float = Field(default=15.0, gt=0)
    """Seconds in which a picture named by URI must be read. After them its item gets an error; the other items are still answered."""
    request_seconds: float = Field(default=60.0, gt=0)
    """Seconds from the arrival of the body to the reply; after them the reply is 503."""
    max_waiting_bytes: int = Field(default=512 * 2**20, ge=1024)
    """Maximum number of bytes of bodies that one ingress replica holds at once; beyond them the reply is 503."""
    max_waiting_items: int = Field(default=512, ge=1)
    """Maximum number of pictures that one ingress replica works on at once; beyond them the reply is 503."""


class Replicas(Section):
    """Number of processes, and what each reserves."""

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=1.0, gt=0)
    """CPUs that each process reserves. A model on CPUs computes with as many threads."""

    @field_validator("num_cpus")
    @classmethod
    def _ray_accepts_cpus(cls, amount: float) -> float:
        if amount > 1 and amount != int(amount):
            raise ValueError("Ray takes a fraction only below 1; give a whole number, or a number below 1")
        return amount


class ModelReplicas(Replicas):
    """The processes that hold the model."""

    num_gpus: float | None = Field(default=None, ge=0, le=1)
    """GPUs that each process reserves, at most one. A fraction lets several processes share a GPU. Default: one if the cluster has any."""
    max_batch: int = Field(default=32, ge=1, le=4096)
    """Maximum number of pictures in one forward pass."""


class ServeSettings(Section):
    """The endpoint."""

    run: str
    """A run's output folder, which means its current model, or a model folder; local or `s3://`."""
    storage: StorageConfig = StorageConfig()
    """How the run folder and pictures named by URI are reached."""
    tokens_file: str | None = None
    """File with bearer tokens, one per line, on every node. Default: `$RAYCLUSTER_TOKENS` (separated by blanks), else no token is needed."""
    allowed_prefixes: tuple[str, ...] = ()
    """Folders and `s3://` prefixes below which a request may name pictures by URI; none by default."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names, without port, under which the endpoint may be addressed. Default: any; `raycluster serve` on loopback sets it."""
    watch_seconds: float | None = Field(default=None, gt=0)
    """Seconds between two checks for a new model of the run, which then replaces the old one. Default: never; `raycluster serve`: 10."""
    limits: Limits = Limits()
    ingress: Replicas = Replicas(max_replicas=4)
    model: ModelReplicas = ModelReplicas()

    @field_validator("allowed_prefixes", "allowed_hosts", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given
