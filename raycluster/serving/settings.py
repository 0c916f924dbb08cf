"""What the endpoint is told: the one argument of its application builder. Fast to import: no torch, no Ray."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from raycluster.config import Section, StorageConfig


class Limits(Section):
    """What one request, and one ingress replica, may ask for. Whatever is more is refused before it costs anything."""

    max_items: int = Field(default=64, ge=1, le=1024)
    """Pictures a request."""
    max_embeddings: int = Field(default=1024, ge=1, le=65_536)
    """Embeddings a request."""
    max_top_k: int = Field(default=100, ge=1)
    """Clusters that a request may ask for with each picture."""
    max_body_bytes: int = Field(default=64 * 2**20, ge=1024)
    """Bytes of a request's body."""
    max_image_bytes: int = Field(default=16 * 2**20, ge=1024)
    """Bytes of one encoded picture; the model's own `max_bytes` counts too."""
    max_image_pixels: int = Field(default=50_000_000, ge=1)
    """Pixels that a picture's header may announce; the model's own `max_pixels` counts too."""
    body_seconds: float = Field(default=20.0, gt=0)
    """Time in which the whole body must have arrived."""
    fetch_seconds: float = Field(default=15.0, gt=0)
    """Time in which a picture named by URI must have been read; else the item says so, and its neighbors are answered."""
    request_seconds: float = Field(default=60.0, gt=0)
    """Time from the arrived body to the reply; then 503."""
    max_waiting_bytes: int = Field(default=512 * 2**20, ge=1024)
    """Bytes of bodies that one ingress replica holds at once; beyond it 503."""
    max_waiting_items: int = Field(default=512, ge=1)
    """Pictures that one ingress replica has at work at once; beyond it 503."""


class Replicas(Section):
    """How many processes, and what each reserves."""

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=1.0, gt=0)
    """CPUs each reserves; a model on CPUs computes with as many threads."""

    @field_validator("num_cpus")
    @classmethod
    def _ray_accepts_cpus(cls, amount: float) -> float:
        if amount > 1 and amount != int(amount):
            raise ValueError("Ray takes a fraction only below one; give a whole number, or one below 1")
        return amount


class ModelReplicas(Replicas):
    """The processes that hold the model."""

    num_gpus: float | None = Field(default=None, ge=0, le=1)
    """GPUs each reserves, at most one: a fraction lets several share one. Default: one if the cluster has any."""
    max_batch: int = Field(default=32, ge=1, le=4096)
    """Most pictures of one forward pass."""


class ServeSettings(Section):
    """The endpoint."""

    run: str
    """A run's output folder (its current model), or a model folder; local or `s3://`."""
    storage: StorageConfig = StorageConfig()
    """How the run folder, and pictures named by URI, are reached."""
    tokens_file: str | None = None
    """File of bearer tokens, one a line, on every node; with neither it nor `$RAYCLUSTER_TOKENS` (separated by blanks) none is asked for."""
    allowed_prefixes: tuple[str, ...] = ()
    """Folders and `s3://` prefixes below which a request may name pictures by URI; none by default."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names under which the endpoint may be addressed, without port; none: any. `raycluster serve` on loopback sets it."""
    watch_seconds: float | None = Field(default=None, gt=0)
    """How often to look whether the run has a new model, which then replaces the old one. Default: never; `raycluster serve`: 10."""
    limits: Limits = Limits()
    ingress: Replicas = Replicas(max_replicas=4)
    model: ModelReplicas = ModelReplicas()

    @field_validator("allowed_prefixes", "allowed_hosts", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given
