"""List the images."""

from __future__ import annotations

from typing import Any

from raycluster.config import RunConfig
from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stage import Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.step import Step
from raycluster.tables.files import write_partitions
from raycluster.tables.markers import Facts, Marker


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
    write_partitions(ctx.place(step), ctx.manifest.table)
    others = ctx.manifest.other_files
    return Outcome(len(ctx.manifest.table), facts=_facts(ctx), note=f"{others} files are no pictures" if others else "")


def judged(ctx: RunContext, marker: Marker) -> Marker:
    """The marker with the facts of today's listing: row ids go on being counted, even if an earlier manifest is current again."""
    return marker.model_copy(update={"facts": {**marker.facts, **_facts(ctx).model_dump(mode="json")}})


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
    folder="manifest",
    keeps=Keeps.FIXED,
    recipe=recipe,
    run=run,
    help="list the images",
    facts=ManifestFacts,
    table="manifest",
    judged=judged,
)
