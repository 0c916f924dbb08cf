"""Keep the nouns that fit the images, and pair each image with them.

Libraries that are slow to import are imported in the functions that use them, so that `raycluster --help` answers at once.
"""

from __future__ import annotations

import numpy as np

from raycluster.pipeline.compaction import compact
from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stage import Covers, Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.stages.manifest import source
from raycluster.pipeline.step import Step
from raycluster.semantics import vocabulary
from raycluster.tables import rows
from raycluster.tables.files import part_files
from raycluster.tables.gates import check_rows


class SemanticsFacts(Covers):
    """What pairing leaves."""

    kept_nouns: int = 0


def training_recipe(ctx: RunContext) -> dict[str, object]:
    """What nouns and heads depend on alike. The rows stay out of it: added ones change neither."""
    config = ctx.config
    return {
        "source": source(config),
        "embed": ctx.fingerprint("embed"),
        "clusters": config.clusters,
        "seed": config.seed,
        "train_sample": ctx.method.train_sample,
    }


def recipe(ctx: RunContext) -> Recipe | None:
    """The vocabulary and the semantic space of the method."""
    from raycluster.methods import registry

    if ctx.vocabulary is None:
        return None
    space = registry.space(ctx.method).model_dump(mode="json")
    return Recipe({**training_recipe(ctx), "vocabulary": ctx.vocabulary.fingerprint, "space": space})


def run(ctx: RunContext, step: Step) -> Outcome:
    """Choose the nouns unless they are chosen, and pair the images that are not in the table."""
    from raycluster.methods import registry
    from raycluster.semantics import counterparts

    assert ctx.vocabulary is not None
    place, ok = ctx.place(step), ctx.statuses("embed")[0]
    if step.marker is None:
        _choose_nouns(ctx, step)
    compact(ctx, step, ok)
    names, embeddings = kept_nouns(ctx)
    missing, space = np.setdiff1d(ok, rows.row_ids(part_files(place))), registry.space(ctx.method)
    with ctx.progress("semantics", len(missing)) as bar:
        for count in counterparts.pair(space, ctx.part_files("embed"), missing, embeddings, place, ctx.resources):
            bar.update(count)
    compact(ctx, step, ok)
    check_rows(place.uri, rows.row_ids(part_files(place)), ok, exact=False)
    facts = SemanticsFacts(manifest=ctx.manifest.fingerprint, kept_nouns=len(names))
    return Outcome(len(ok), facts=facts, note=f"{len(names)} of {len(ctx.vocabulary.nouns)} nouns kept")


def _choose_nouns(ctx: RunContext, step: Step) -> None:
    from raycluster.methods import registry
    from raycluster.semantics import counterparts

    assert ctx.vocabulary is not None
    # What a killed run has left was perhaps paired with other nouns.
    ctx.place(step).delete()
    embeddings, images = noun_embeddings(ctx), ctx.gather("embed", ctx.training_rows())
    space, config = registry.space(ctx.method), ctx.config
    kept = counterparts.keep_nouns(space, images, embeddings, config.clusters, config.seed, ctx.resources)
    nouns = [ctx.vocabulary.nouns[i] for i in kept]
    vocabulary.write_nouns(ctx.place(step) / "nouns.parquet", nouns, embeddings[kept])


def noun_embeddings(ctx: RunContext) -> np.ndarray:
    """Unit embeddings [n, d] float32 of the whole vocabulary."""
    from raycluster.semantics.counterparts import embed_vocabulary

    assert ctx.vocabulary is not None
    if ctx.vocabulary.embeddings is not None:
        return ctx.vocabulary.embeddings
    assert ctx.spec is not None
    return embed_vocabulary(ctx.config, ctx.vocabulary.nouns, ctx.spec, ctx.resources)


def kept_nouns(ctx: RunContext) -> tuple[list[str], np.ndarray]:
    """The nouns that the method's semantic space kept, and their unit embeddings [M, d] float32."""
    return vocabulary.read_nouns(ctx.place(ctx.plan["semantics"]) / "nouns.parquet")


STAGE = Stage(
    name="semantics",
    folder="semantics",
    keeps=Keeps.TRAINED_ROWS,
    recipe=recipe,
    run=run,
    help="keep the nouns that fit the images and pair each image with them",
    facts=SemanticsFacts,
    table="semantics",
)
