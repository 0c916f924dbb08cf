"""List the images.

Libraries that are slow to import are imported in the functions that use them, so that `raycluster --help` answers at once.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from raycluster.config import RunConfig
from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stage import Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.step import Step
from raycluster.storage.parallel import map_threads
from raycluster.tables import rows
from raycluster.tables.files import part_files, write_partitions
from raycluster.tables.gates import check_rows
from raycluster.tables.markers import Facts, Marker

FOLDER = "manifest"
"""Folder below the output that holds the manifests."""


class ManifestFacts(Facts):
    """What the manifest leaves for later listings."""

    lineage: str
    next_row_id: int
    other_files: int = 0
    fingerprint: str = ""
    samples: tuple[tuple[str, ...], ...] | None = None
    """URIs of some images of each source; None in markers of earlier versions."""


def source(config: RunConfig) -> dict[str, Any]:
    """What a manifest depends on besides the storage itself, as plain data."""
    # Lists, as markers read from their files have them.
    images, embeddings = (
        list(given) if isinstance(given, tuple) else given for given in (config.images, config.embeddings)
    )
    return {"images": images, "embeddings": embeddings, "labels": config.labels}


def recipe(ctx: RunContext) -> Recipe:
    """The sources; the result is named after what they hold now."""
    return Recipe(source(ctx.config), fingerprint=ctx.manifest.fingerprint)


def run(ctx: RunContext, step: Step) -> Outcome:
    """Write the list of images."""
    from raycluster.images.listing import known_tars

    manifest, place = ctx.manifest, ctx.place(step)
    assert manifest.listed is not None
    for _ in map_threads(partial(write_partitions, place), manifest.listed.partitions()):
        pass
    check_rows(place.uri, rows.row_ids(part_files(place)), manifest.row_ids, exact=True)
    known_tars.forget_tars(place.parent / known_tars.FOLDER, manifest.kept_tars)
    others = manifest.other_files
    return Outcome(len(ctx.row_ids), facts=_facts(ctx), note=f"{others} files are no pictures" if others else "")


def judged(ctx: RunContext, marker: Marker) -> Marker:
    """The marker with the facts of today's listing: row ids go on being counted, even if an earlier manifest is current again."""
    return marker.model_copy(update={"facts": {**marker.facts, **_facts(ctx).model_dump(mode="json")}})


def forget_listing(ctx: RunContext) -> None:
    """Let go of the listing, which takes memory and a temporary file: later stages read the manifest."""
    ctx.manifest = replace(ctx.manifest, listed=None)


def _facts(ctx: RunContext) -> ManifestFacts:
    manifest = ctx.manifest
    return ManifestFacts(
        fingerprint=manifest.fingerprint,
        lineage=manifest.lineage,
        next_row_id=manifest.next_row_id,
        other_files=manifest.other_files,
        samples=manifest.samples,
    )


STAGE = Stage(
    name="manifest",
    folder=FOLDER,
    keeps=Keeps.FIXED,
    recipe=recipe,
    run=run,
    help="list the images",
    facts=ManifestFacts,
    table="manifest",
    judged=judged,
    after=forget_listing,
)
