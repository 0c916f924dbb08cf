"""The checks of a run: they find everything that can be wrong before any costly work, and the cheapest come first."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from raycluster.compute.connect import connect
from raycluster.compute.resources import resolve
from raycluster.compute.tasks import map_tasks
from raycluster.config import MethodConfig, RunConfig
from raycluster.encoder import ready_made
from raycluster.encoder.clip import EncoderSpec, resolve_encoder
from raycluster.errors import ConfigError
from raycluster.images.listing import known_tars
from raycluster.images.listing.manifest import list_images
from raycluster.images.listing.numbering import number_rows
from raycluster.images.listing.progress import image_progress
from raycluster.methods import registry
from raycluster.pipeline.cluster_checks import find_common
from raycluster.pipeline.context import Manifest, RunContext, Vocabulary
from raycluster.pipeline.stage import Covers
from raycluster.pipeline.stages.manifest import FOLDER as MANIFEST_FOLDER
from raycluster.pipeline.stages.manifest import ManifestFacts, source
from raycluster.section import fingerprint
from raycluster.semantics import vocabulary
from raycluster.storage.location import Location
from raycluster.tables import rows
from raycluster.tables.markers import RunFolder

SHARD_SIDE = 1.75
"""Default of `shards.size`, as a multiple of the encoder's input side.

`tests/benchmarks/shards.py --nearness` compares embeddings of original photographs with embeddings of their copies in shards, for encoders
at 64 to 129 pixels. Their mean cosine is 0.997 to 0.998 at 1.15, 0.9986 to 0.9996 at 1.5, and 0.9993 or more at 1.75. With 1.75 the
smallest crop of fine-tuning, half the area, also still has more pixels than the encoder takes.
"""

FORMER_SAMPLE = 200_000
"""Default of `method.train_sample` for `consensus` in versions that wrote it into the recipes of older run folders."""


def prepare(
    config: RunConfig,
    folder: RunFolder,
    retrain: bool,
    retry_failed: bool,
    lists: bool = True,
    dry_run: bool = False,
) -> RunContext:
    """Check everything that can be wrong, cheapest first, and return the context of the run. Raises :class:`ConfigError`.

    `retry_failed`: treat images that could not be read in an earlier run as new ones. `lists`: list the images again even if there is a
    manifest of the same sources. `dry_run`: write nothing.
    """
    method = sized(registry.configure(config.method), config.clusters, None if retrain else folder)
    if method.train_sample < config.clusters:
        raise ConfigError(
            f"method.train_sample: {method.train_sample} images cannot train {config.clusters} clusters; raise it, or lower `clusters`"
        )
    if config.finetune.enabled:
        _check_finetune(config, method)
    nouns, noun_embeddings = _load_nouns(config, method)
    connect()
    resources = resolve(config.resources)
    spec = resolve_encoder(config.encoder, resources.use_gpu, config.storage) if config.images else None
    shard_size = _shard_size(config, spec)
    encoder = spec.fingerprint if spec else "provided"
    if noun_embeddings is not None:
        _check_dimensions(config, folder, spec, noun_embeddings.shape[1])
    stored = None if lists or retry_failed else stored_inputs(config, folder)
    manifest = stored or list_inputs(config, folder, retry_failed, dry_run)
    resources = replace(resources, common=find_common(config, folder.root, manifest.samples, spec))
    if len(manifest.row_ids) < config.clusters:
        raise ConfigError(
            f"clusters: {config.clusters} clusters, but only {len(manifest.row_ids)} images were found; lower `clusters`"
        )
    return RunContext(
        config=config,
        folder=folder,
        method=method,
        resources=resources,
        encoder=encoder,
        spec=spec,
        shard_size=shard_size,
        vocabulary=None if nouns is None else _vocabulary(config, nouns, noun_embeddings, encoder),
        manifest=manifest,
        retrain=retrain,
    )


def sized(method: MethodConfig, clusters: int, folder: RunFolder | None) -> MethodConfig:
    """Return the method with its `train_sample`: the given number, else the method's default for so many clusters.

    A finished fit of an earlier version to FORMER_SAMPLE images or fewer stays, if the default of today would take the same images. Its
    recipe then differs in nothing but a number that does not matter.
    """
    default = registry.method_class(method.name).default_sample(clusters)
    if default is None or "train_sample" in method.model_fields_set:
        return method
    marker = (folder.marker("train") or folder.marker("semantics")) if folder else None
    former = {"train_sample": FORMER_SAMPLE, "clusters": clusters}
    if marker and former.items() <= marker.recipe.items() and marker.rows <= min(default, FORMER_SAMPLE - 1):
        default = FORMER_SAMPLE
    return method.model_copy(update={"train_sample": default})


def _shard_size(config: RunConfig, spec: EncoderSpec | None) -> int | None:
    if not config.shards.enabled:
        return None
    if spec is None:
        raise ConfigError(
            "shards.enabled: shards hold pictures, but the run reads ready-made embeddings; give `images` instead of `embeddings`, or set it to false"
        )
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
            "finetune.enabled: an encoder is tuned on pictures, but the run reads ready-made embeddings; give `images` instead of `embeddings`, or set it to false"
        )
    if not registry.method_class(method.name).variant(method).image_head:
        untrained = " with `trained: false`" if method.name == "tac" else ""
        raise ConfigError(
            f"finetune.enabled: method {method.name}{untrained} has no image head that fine-tuning can train; "
            "choose `method.name: consensus` or a method that is trained"
        )


def _load_nouns(config: RunConfig, method: MethodConfig) -> tuple[list[str] | None, np.ndarray | None]:
    """Return the nouns, and their embeddings if those are given. A run on ready-made image embeddings may have no nouns."""
    if config.vocabulary.embeddings is not None:
        return vocabulary.load_noun_embeddings(config.vocabulary.embeddings, config.storage)
    if config.images is not None:
        return vocabulary.load_nouns(config.vocabulary, config.storage), None
    if registry.method_class(method.name).text == "required":
        raise ConfigError(
            f"vocabulary.embeddings: method {method.name} needs nouns, and ready-made image embeddings come without a text encoder; "
            "give noun embeddings of the same encoder, or choose a method that needs no nouns: consensus or kmeans"
        )
    return None, None


def _vocabulary(config: RunConfig, nouns: list[str], embeddings: np.ndarray | None, encoder: str) -> Vocabulary:
    if embeddings is None:
        key = vocabulary.vocabulary_key(nouns, config.vocabulary.prompts, encoder)
    else:
        key = fingerprint(nouns, _digest(embeddings))
    return Vocabulary(nouns=nouns, embeddings=embeddings, fingerprint=key)


def _check_dimensions(config: RunConfig, folder: RunFolder, spec: EncoderSpec | None, nouns: int) -> None:
    images = spec.dim if spec else ready_made.dimension(embedding_files(config, folder))
    if images not in (None, nouns):
        raise ConfigError(
            f"vocabulary.embeddings: nouns have {nouns} dimensions, but images have {images}; make both with the same encoder"
        )


def embedding_files(config: RunConfig, folder: RunFolder) -> list[Location]:
    """Return the files of ready-made image embeddings."""
    return ready_made.find_files(config.embedding_sources, config.storage, folder.root)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def stored_inputs(config: RunConfig, folder: RunFolder) -> Manifest | None:
    """Return the current manifest of this run folder; None if there is none of the same sources, or ready-made embeddings are not imported."""
    marker, embed = folder.marker("manifest"), folder.marker("embed")
    facts = marker.typed(ManifestFacts) if marker and marker.recipe == source(config) else None
    if marker is None or facts is None or facts.samples is None:
        return None
    if config.images is None and (embed is None or embed.typed(Covers).manifest != marker.fingerprint):
        return None
    return Manifest(
        row_ids=np.sort(rows.row_ids(folder.part_files(marker))),
        fingerprint=marker.fingerprint,
        lineage=facts.lineage,
        next_row_id=facts.next_row_id,
        other_files=facts.other_files,
        samples=facts.samples,
    )


def list_inputs(config: RunConfig, folder: RunFolder, retry_failed: bool, dry_run: bool = False) -> Manifest:
    """Return the manifest as it would be written now. With `dry_run` nothing is written below the output."""
    pictures = provided = None
    if config.images is not None:
        with image_progress("manifest") as progress:
            known = None if dry_run else folder.root / MANIFEST_FOLDER / known_tars.FOLDER
            map_tars = partial(_in_tasks, config, folder.root)
            pictures = list_images(
                config.image_sources, config.storage, config.labels, progress, folder.root, map_tars, known
            )
            found = pictures.rows
    else:
        provided = ready_made.list_provided(embedding_files(config, folder), partial(_in_tasks, config, folder.root))
        found = provided.rows
    earlier, current = folder.latest_with("manifest", source(config)), folder.marker("manifest")
    next_row_id = current.typed(ManifestFacts).next_row_id if current else 0
    again = _failed(folder) if retry_failed else np.empty(0, np.int64)
    listed = number_rows(found, folder.part_files(earlier) if earlier else (), next_row_id, again)
    digest = listed.digest[:16]
    if earlier is None:
        lineage = digest
    elif listed.grown_only:
        lineage = earlier.typed(ManifestFacts).lineage
    else:
        lineage = fingerprint(digest, earlier.fingerprint)
    row_ids = np.sort(listed.row_ids)
    return Manifest(
        row_ids=row_ids,
        # The digest was made in another way by earlier versions.
        fingerprint=earlier.fingerprint if earlier and listed.unchanged else digest,
        lineage=lineage,
        next_row_id=max(int(row_ids[-1]) + 1, next_row_id),
        other_files=pictures.other_files if pictures else 0,
        samples=pictures.samples if pictures else (),
        listed=listed,
        kept_tars=pictures.kept_tars if pictures else frozenset(),
        provided=ready_made.Provided(provided.slices, listed.row_ids, provided.dim) if provided else None,
    )


def _in_tasks(config: RunConfig, root: Location, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Call a function for files or for slices of files, in tasks, and yield the results in order. Every node must see local files."""
    files = [item if isinstance(item, Location) else item.file for item in items]
    field = "embeddings" if config.images is None else "images"
    common = find_common(config, root, [[file.uri for file in files]], None, field)
    return map_tasks(function, items, common=common, ordered=True)


def _failed(folder: RunFolder) -> np.ndarray:
    """Return the ids of the rows that have a status other than `ok` in the current embeddings."""
    marker = folder.marker("embed")
    return rows.failed(folder.part_files(marker)) if marker else np.empty(0, np.int64)
