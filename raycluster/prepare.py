"""Everything that can be wrong is found here, cheapest first, before any costly work."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from raycluster import distributed, rows
from raycluster.config import MethodConfig, RunConfig, fingerprint
from raycluster.encoder import provided
from raycluster.encoder.clip import EncoderSpec, resolve_encoder
from raycluster.errors import ConfigError
from raycluster.images.counting import counted
from raycluster.images.manifest import content_digest, grown_only, list_images, number_rows
from raycluster.methods import registry
from raycluster.node_checks import find_common
from raycluster.plan import Inputs, manifest_recipe
from raycluster.resources import Resources, resolve
from raycluster.run_folder import RunFolder
from raycluster.semantics import vocabulary
from raycluster.storage import Location, read_table

SHARD_SIDE = 1.75
"""Default of `shards.size`, as a multiple of the encoder's side. `tests/benchmarks/shards.py --nearness` on photographs, encoders at 64 to
129 pixels: the mean cosine of embeddings of originals and of what shards hold of them is 0.997 to 0.998 at 1.15, 0.9986 to 0.9996 at 1.5,
0.9993 or more at 1.75. It also leaves the smallest crop of fine-tuning, half the area, more pixels than the encoder takes."""


@dataclass(frozen=True)
class Prepared:
    """A checked configuration and what was found out while checking it."""

    config: RunConfig
    folder: RunFolder
    method: MethodConfig
    """With the method's own constants."""
    resources: Resources
    spec: EncoderSpec | None
    """None with ready-made embeddings."""
    shard_size: int | None
    """Shortest side of the pictures in shards; None: without shards."""
    nouns: list[str] | None
    """The vocabulary; None if there is none."""
    noun_embeddings: np.ndarray | None
    """Given with `vocabulary.embeddings`; otherwise embedded in the semantics stage."""
    listing: pa.Table
    """The manifest as listed now, with row ids."""
    manifest_facts: dict[str, Any]
    inputs: Inputs
    """What the plan is made from."""


def prepare(config: RunConfig, folder: RunFolder, retrain: bool, retry_failed: bool) -> Prepared:
    """Check all that can be wrong, cheapest first; raises :class:`ConfigError`.

    `retry_failed`: images that could not be read in an earlier run count as new ones.
    """
    method = registry.configure(config.method)
    if method.train_sample < config.clusters:
        raise ConfigError(
            f"method.train_sample: {method.train_sample} images cannot train {config.clusters} clusters; raise it, or lower `clusters`"
        )
    if config.finetune.enabled:
        _check_finetune(config, method)
    nouns, noun_embeddings, key = _vocabulary(config, method)
    distributed.connect()
    resources = resolve(config.resources)
    spec = resolve_encoder(config.encoder, resources.use_gpu, config.storage) if config.images else None
    shard_size = _shard_size(config, spec)
    encoder = spec.fingerprint if spec else "provided"
    if key is None and nouns is not None:
        key = vocabulary.vocabulary_key(nouns, config.vocabulary.prompts, encoder)
    if noun_embeddings is not None:
        _check_dimensions(config, folder, spec, noun_embeddings.shape[1])
    listing, facts, samples = list_inputs(config, folder, retry_failed)
    resources = replace(resources, common=find_common(config, folder.root, samples, spec))
    if len(listing) < config.clusters:
        raise ConfigError(
            f"clusters: {config.clusters} clusters, but only {len(listing)} images were found; lower `clusters`"
        )
    space = registry.space(method).model_dump(mode="json")
    inputs = Inputs(config, method, facts["fingerprint"], facts["lineage"], encoder, space, key, shard_size, retrain)
    return Prepared(config, folder, method, resources, spec, shard_size, nouns, noun_embeddings, listing, facts, inputs)


def _shard_size(config: RunConfig, spec: EncoderSpec | None) -> int | None:
    if not config.shards.enabled:
        return None
    if spec is None:
        raise ConfigError("shards.enabled: shards hold pictures; give `images` instead of `embeddings`, or remove it")
    needed = max(spec.image_size)
    if config.shards.size is None:
        return round(SHARD_SIDE * needed)
    if config.shards.size < needed:
        raise ConfigError(
            f"shards.size: {config.shards.size} pixels, but the encoder takes {needed}; give {needed} or more, or remove it"
        )
    return config.shards.size


def _check_finetune(config: RunConfig, method: MethodConfig) -> None:
    if config.images is None:
        raise ConfigError(
            "finetune.enabled: an encoder is tuned on pictures; give `images` instead of `embeddings`, or remove it"
        )
    if not registry.method_class(method.name).variant(method).image_head:
        untrained = " with `trained: false`" if method.name == "tac" else ""
        raise ConfigError(
            f"finetune.enabled: method {method.name}{untrained} has no image head that could be trained along; "
            "choose consensus, or a trained method"
        )


def _vocabulary(config: RunConfig, method: MethodConfig) -> tuple[list[str] | None, np.ndarray | None, str | None]:
    """Nouns, their embeddings if given, and the key of given embeddings."""
    if config.vocabulary.embeddings is not None:
        nouns, embeddings = vocabulary.load_noun_embeddings(config.vocabulary.embeddings, config.storage)
        return nouns, embeddings, fingerprint(nouns, _digest(embeddings))
    if config.images is not None:
        return vocabulary.load_nouns(config.vocabulary, config.storage), None, None
    if registry.method_class(method.name).text == "required":
        raise ConfigError(
            f"vocabulary.embeddings: method {method.name} needs nouns, and ready-made image embeddings come without a text encoder; "
            "give noun embeddings of the same model, or choose a method that does without: consensus or kmeans"
        )
    return None, None, None


def _check_dimensions(config: RunConfig, folder: RunFolder, spec: EncoderSpec | None, nouns: int) -> None:
    images = spec.dim if spec else provided.dimension(embedding_files(config, folder))
    if images not in (None, nouns):
        raise ConfigError(
            f"vocabulary.embeddings: nouns have {nouns} dimensions, images {images}; make both with the same encoder"
        )


def embedding_files(config: RunConfig, folder: RunFolder) -> list[Location]:
    """The files of ready-made embeddings."""
    return provided.find_files(config.embedding_sources, config.storage, folder.root)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def list_inputs(
    config: RunConfig, folder: RunFolder, retry_failed: bool
) -> tuple[pa.Table, dict[str, Any], tuple[tuple[str, ...], ...]]:
    """The manifest as it would be written now, its facts (fingerprint, lineage, next row id, other files), and samples of each source.

    Of ready-made embeddings there are no samples: only this process reads them, and nobody the pictures that they were made of.
    """
    if config.images is not None:
        with counted("manifest") as seen:
            listing = list_images(config.image_sources, config.storage, config.labels, seen, folder.root)
        found, others, samples = listing.table, listing.other_files, listing.samples
    else:
        found, others, samples = provided.list_provided(embedding_files(config, folder)), 0, ()
    earlier = folder.latest_with("manifest", manifest_recipe(config))
    previous = read_table(folder.parts(earlier)) if earlier else None
    current = folder.marker("manifest")
    next_row_id = current.facts["next_row_id"] if current else 0
    again = _failed(folder) if retry_failed else np.empty(0, np.int64)
    table = number_rows(found, previous, next_row_id, again)
    digest = content_digest(table)[:16]
    if earlier is None or previous is None:
        lineage = digest
    else:
        lineage = earlier.facts["lineage"] if grown_only(previous, table) else fingerprint(digest, earlier.fingerprint)
    highest = int(table.column("row_id").to_numpy().max()) + 1
    facts = {
        "fingerprint": digest,
        "lineage": lineage,
        "next_row_id": max(highest, next_row_id),
        "other_files": others,
    }
    return table, facts, samples


def _failed(folder: RunFolder) -> np.ndarray:
    """Ids of the rows whose status is not `ok` in the current embeddings."""
    marker = folder.marker("embed")
    return rows.failed(folder.parts(marker)) if marker else np.empty(0, np.int64)
