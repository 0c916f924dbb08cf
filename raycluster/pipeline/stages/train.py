"""Train the cluster heads and name the clusters.

Libraries that are slow to import are imported in the functions that use them, so that `raycluster --help` answers at once.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from raycluster.model.record import FORMAT
from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stage import Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.stages.semantics import kept_nouns, noun_embeddings, training_recipe
from raycluster.pipeline.step import Step
from raycluster.tables.markers import MODEL_FOLDER, Facts

if TYPE_CHECKING:
    import ray

NAMED = 200_000
"""Largest number of training images that clusters are named by: 0.4 GB in float32 at 512 dimensions, and every one votes on every noun."""


class TrainFacts(Facts):
    """What training leaves."""

    seed: int = 0
    training: dict[str, Any]
    """Schedule and history."""
    constants: dict[str, Any]
    """The method's constants, including those that follow from the data."""
    used_clusters: int = 0
    lineage: str | None = None
    """Lineage of the manifest then, which tells whether images were removed since; None in markers of earlier versions."""


def recipe(ctx: RunContext) -> Recipe:
    """The method, and what it is trained on."""
    nouns, method = ctx.fingerprint("semantics"), ctx.method.model_dump(mode="json")
    # A model of an earlier format is trained again: this version could not read it.
    return Recipe({**training_recipe(ctx), "semantics": nouns, "method": method, "format": FORMAT})


def run(ctx: RunContext, step: Step) -> Outcome:
    """Train the heads, name the clusters, write the model."""
    import ray

    from raycluster.methods.base import TrainedMethod
    from raycluster.model.files import save_model
    from raycluster.model.model import make_memory
    from raycluster.training.heads import HeadsJob, train_heads

    ctx.warn_of_missing_cuda()
    config = ctx.config
    data = _training_data(ctx)
    images = ray.get(data["images"])
    n, dim = images.shape
    job = HeadsJob(ctx.method, dim, config.clusters, n, config.seed)
    method, history = train_heads(job, data, ctx.folder.root / "training" / step.fingerprint, ctx.resources)
    memory, assigned = make_memory(method, images)
    schedule = asdict(method.schedule()) if isinstance(method, TrainedMethod) else {}
    training = {**schedule, "history": history}
    record = {"seed": config.seed, "training": training}
    save_model(ctx.place(step), method, memory, _encoder_record(ctx), _names(ctx, data["images"], assigned), record)
    used = _count_used(ctx, assigned)
    facts = TrainFacts(
        seed=config.seed,
        training=training,
        constants=method.constants,
        used_clusters=used,
        lineage=ctx.manifest.lineage,
    )
    return Outcome(n, facts=facts, note=f"{ctx.method.name}, {used} clusters used")


def _training_data(ctx: RunContext) -> dict[str, ray.ObjectRef]:
    """What the method's training takes, in Ray's shared memory: `row_ids` and `images`, and what it needs of the nouns.

    Every array is put there as soon as it is read, so that this process holds one of them at a time.
    """
    import ray

    from raycluster.methods import registry

    sample, method = ctx.training_rows(), registry.method_class(ctx.method.name)
    data = {"row_ids": ray.put(sample), "images": ray.put(ctx.gather("embed", sample))}
    if method.text == "required":
        data["counterparts"] = ray.put(ctx.gather("semantics", sample, "counterpart"))
        data["nouns"] = ray.put(kept_nouns(ctx)[1])
    if ctx.uses_text and method.wants_vocabulary(ctx.method):
        data["vocabulary"] = ray.put(noun_embeddings(ctx))
    return data


def _encoder_record(ctx: RunContext) -> dict[str, Any]:
    """The encoder as the model folder describes it."""
    return {
        "config": None if ctx.spec is None else ctx.config.encoder.model_dump(mode="json"),
        "precision": None if ctx.spec is None else ctx.spec.precision,
        "fingerprint": ctx.encoder,
    }


def _names(ctx: RunContext, images: ray.ObjectRef, assigned: np.ndarray) -> list[dict[str, Any]]:
    """A name for each cluster, from the nouns nearest to its images, or to some of them if there are very many.

    One Ray task finds the names, on a GPU if the cluster has one.
    """
    import ray
    import torch

    from raycluster.compute.resources import own_device
    from raycluster.compute.tasks import one_task
    from raycluster.results.naming import best_nouns, name_clusters, unnamed

    resources, n_clusters = ctx.resources, ctx.config.clusters
    if "semantics" not in ctx.plan:
        return unnamed(n_clusters)
    nouns, embeddings = kept_nouns(ctx)
    some = np.unique(np.linspace(0, len(assigned) - 1, min(len(assigned), NAMED)).round().astype(np.int64))

    def name(images: np.ndarray, assigned: np.ndarray, embeddings: np.ndarray) -> list[dict[str, Any]]:
        resources.use_heavy_threads()
        chosen = (images[some], assigned[some], np.array(embeddings))
        x, own, t = (torch.from_numpy(each).to(own_device()) for each in chosen)
        return name_clusters(best_nouns(x, own.long(), t, n_clusters), nouns)

    return one_task(name, resources, images, ray.put(assigned), ray.put(embeddings))


def _count_used(ctx: RunContext, assigned: np.ndarray) -> int:
    used = len(np.unique(assigned))
    if used < ctx.config.clusters:
        empty = ctx.config.clusters - used
        ctx.warn(f"{empty} of {ctx.config.clusters} clusters are empty; fewer `clusters` may fit better")
    return used


STAGE = Stage(
    name="train",
    folder=MODEL_FOLDER,
    keeps=Keeps.TRAINED,
    recipe=recipe,
    run=run,
    help="train the cluster heads and name the clusters",
    facts=TrainFacts,
)
