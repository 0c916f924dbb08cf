"""Fine-tune the encoder on its own confident clusters, and see whether the result can be trusted.

Libraries that are slow to import are imported in the functions that use them, so that `raycluster --help` answers at once.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pydantic import Field

from raycluster.errors import DataQualityError
from raycluster.model.record import ENCODER_FILE
from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stage import Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.stages.embed import stream
from raycluster.pipeline.stages.manifest import source
from raycluster.pipeline.step import Step
from raycluster.tables import rows
from raycluster.tables.files import part_files
from raycluster.tables.markers import MODEL_FOLDER, Facts, Marker

if TYPE_CHECKING:
    from raycluster.finetuning.finetune import Tuned
    from raycluster.model.model import Model

log = logging.getLogger(__name__)

GUARDED = 10_000
"""Images by which a collapse is noticed, and by which the sizes of clusters are known."""


class FinetuneFacts(Facts):
    """What fine-tuning leaves."""

    guard: dict[str, float]
    """Measures of a sample, by which a collapse is noticed (:mod:`raycluster.finetuning.collapse`)."""
    refused: str = ""
    """Why the tuned encoder is refused, in words; empty if it is not."""
    kind: str = ""
    """`lora` or `last stage`."""
    history: list[dict[str, float]] = Field(default_factory=list)
    """Figures of each epoch."""
    lineage: str | None = None
    """Lineage of the manifest then, which tells whether images were removed since; None in markers of earlier versions."""


def recipe(ctx: RunContext) -> Recipe | None:
    """The heads to begin with, the images, and the settings that the weights depend on."""
    if not ctx.config.finetune.enabled:
        return None
    given = {"source": source(ctx.config), "embed": ctx.fingerprint("embed"), "seed": ctx.config.seed}
    return Recipe({**given, "train": ctx.fingerprint("train"), "finetune": ctx.config.finetune.training})


def run(ctx: RunContext, step: Step) -> Outcome:
    """Fine-tune, write the model, and look at a sample through both encoders."""
    from raycluster.finetuning.finetune import finetune
    from raycluster.finetuning.pixels import PixelJob
    from raycluster.model.prediction import probabilities
    from raycluster.randomness import sampled

    config, seed = ctx.config.finetune, ctx.config.seed
    assert ctx.spec is not None
    sample = sampled(ctx.statuses("embed")[0], config.train_sample, seed)
    images = _images(ctx, sample)
    batch = min(config.batch_size, len(images))
    job = PixelJob(ctx.spec, ctx.config.encoder, ctx.config.storage, seed, len(images), batch)
    before = ctx.load_model("train")
    guarded = sampled(sample, GUARDED, seed)
    sizes = probabilities(before.method, ctx.gather("embed", guarded)).mean(dim=0)
    training = ctx.folder.root / "training" / step.fingerprint
    tuned = finetune(config, job, before.method, sizes, images, training, ctx.resources)
    readable = _embed_sample(ctx, step, tuned, guarded)
    _save(ctx, step, before, tuned, ctx.gather("reembed", readable))
    measures = _measure(ctx, before, readable)
    facts = FinetuneFacts(guard=measures, kind=tuned.kind, history=tuned.history, lineage=ctx.manifest.lineage)
    return Outcome(len(images), facts=facts, note=f"{tuned.kind}, {measures['agreement']:.1%} keep their cluster")


def _images(ctx: RunContext, wanted: np.ndarray) -> pa.Table:
    """Where the pictures of these rows lie, ascending: row_id, and uri and size, or their place in shards."""
    if "shard" in ctx.plan:
        from raycluster.images.shards import find_rows

        return find_rows(ctx.picture_files, wanted)
    return rows.rows_by_id(rows.find_spans(ctx.picture_files), wanted, ["uri", "size"])


def _embed_sample(ctx: RunContext, step: Step, tuned: Tuned, chosen: np.ndarray) -> np.ndarray:
    """Embed some of the images with the tuned encoder: the first rows of the table that `reembed` goes on with. Returns those readable."""
    from safetensors.torch import save

    from raycluster.encoder.clip import TunedTower

    assert ctx.spec is not None
    file, content = ctx.place(step) / ENCODER_FILE, save(tuned.tower)
    file.write_bytes(content)
    again = ctx.plan["reembed"]
    stream(ctx, again, ctx.spec.tuned(TunedTower(file, hashlib.sha256(content).hexdigest())), chosen)
    readable = rows.statuses(part_files(ctx.place(again)), chosen)[0]
    if not len(readable):
        raise DataQualityError(
            "finetune: no image could be read again to check the result; check that the storage can be reached, and run again"
        )
    return readable


def _save(ctx: RunContext, step: Step, before: Model, tuned: Tuned, embeddings: np.ndarray) -> None:
    """Write the model. `embeddings` [n, d]: of training images, by the tuned encoder."""
    from safetensors.torch import save

    from raycluster.model.files import save_model
    from raycluster.model.model import make_memory

    record = {
        **{key: before.record[key] for key in ("seed", "training")},
        "finetune": {**ctx.config.finetune.training, "kind": tuned.kind, "history": tuned.history},
    }
    files = {ENCODER_FILE: save(tuned.tower), "adapter.safetensors": save(tuned.adapter)}
    memory = make_memory(tuned.method, embeddings)[0]
    save_model(ctx.place(step), tuned.method, memory, before.record["encoder"], before.clusters, record, files)


def _measure(ctx: RunContext, before: Model, sample: np.ndarray) -> dict[str, float]:
    """Compare the clusters of a sample before and after."""
    from raycluster.finetuning import collapse
    from raycluster.model.prediction import probabilities

    after = ctx.load_model("finetune")
    images = ctx.gather("embed", sample)
    own = probabilities(before.method, images).argmax(dim=1).numpy()
    tuned = probabilities(after.method, ctx.gather("reembed", sample)).argmax(dim=1).numpy()
    return collapse.measure(images, own, tuned, ctx.config.clusters)


def refused(ctx: RunContext) -> str:
    """Why the tuned encoder is refused under today's bounds; empty if it is not, or not known yet."""
    marker = ctx.plan["finetune"].marker
    return _refusal(ctx, marker) if marker else ""


def _refusal(ctx: RunContext, marker: Marker) -> str:
    from raycluster.finetuning.collapse import refusal

    return refusal(marker.typed(FinetuneFacts).guard, ctx.config.finetune)


def judged(ctx: RunContext, marker: Marker) -> Marker:
    """The marker under today's bounds. If the result is refused, it names the model before."""
    reason = _refusal(ctx, marker)
    path = ctx.plan["train"].path if reason else f"{MODEL_FOLDER}/{marker.fingerprint}"
    return marker.model_copy(update={"path": path, "facts": {**marker.facts, "refused": reason}})


def warn_if_refused(ctx: RunContext) -> None:
    """Tell the user why the run goes on without the tuned encoder."""
    facts = ctx.facts("finetune", FinetuneFacts)
    if facts and facts.refused:
        log.warning("finetune  %s", facts.refused)
        ctx.warn(facts.refused)


STAGE = Stage(
    name="finetune",
    folder=MODEL_FOLDER,
    keeps=Keeps.TRAINED,
    recipe=recipe,
    run=run,
    help="fine-tune the encoder on its own confident clusters (with `finetune.enabled`)",
    facts=FinetuneFacts,
    switch="finetune.enabled",
    judged=judged,
    after=warn_if_refused,
)
