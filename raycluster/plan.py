"""Which stages a run has to do: a recipe and a fingerprint for each, and the reason to run or to skip it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raycluster.config import MethodConfig, RunConfig, fingerprint
from raycluster.model_files import FORMAT
from raycluster.run_folder import FOLDERS, Marker, RunFolder
from raycluster.training.guard import refusal

STAGES = tuple(stage for stage in FOLDERS if stage != "drift")
"""The stages of a run."""
TUNING = ("baseline", "finetune", "reembed")
"""The stages that only a run with fine-tuning has."""
OPTIONAL = ("shard", *TUNING)
"""The stages that a run has only if they are enabled."""


@dataclass(frozen=True)
class Inputs:
    """What the plan is made from; all of it is known before any costly work."""

    config: RunConfig
    method: MethodConfig
    manifest: str
    """Fingerprint of the manifest as listed now."""
    lineage: str
    """Constant while the manifest only grows."""
    encoder: str
    """Fingerprint of the encoder; of ready-made embeddings, the word `provided`."""
    space: dict[str, Any]
    """The semantic space of the method."""
    vocabulary: str | None
    """Key of the noun embeddings; None without nouns."""
    shard_size: int | None = None
    """Shortest side of the pictures in shards; None: without shards."""
    retrain: bool = False


@dataclass(frozen=True)
class Step:
    """One stage of the plan."""

    stage: str
    fingerprint: str
    recipe: dict[str, Any]
    reason: str
    """Why it runs or why it is skipped, in words."""
    marker: Marker | None
    """The finished result, if there is one; of a row-incremental stage perhaps of fewer rows."""
    run: bool


def manifest_recipe(config: RunConfig) -> dict[str, Any]:
    """What a manifest depends on besides the storage itself."""
    # Lists, as markers read from their files have them.
    images, embeddings = (
        list(given) if isinstance(given, tuple) else given for given in (config.images, config.embeddings)
    )
    return {"images": images, "embeddings": embeddings, "labels": config.labels}


def make(folder: RunFolder, inputs: Inputs) -> dict[str, Step]:
    """The plan: stages in order. Stages that the configuration has no use for are left out."""
    config, planner = inputs.config, _Planner(folder, inputs)
    planner.fixed("manifest", manifest_recipe(config), inputs.manifest)
    limits = _limits(config)
    seen: dict[str, Any] = dict(limits)
    if inputs.shard_size is not None:
        planner.growing("shard", {"size": inputs.shard_size, **limits})
        seen["shards"] = inputs.shard_size
    embed = planner.growing("embed", {"encoder": inputs.encoder, **seen})
    # The row set stays out of the next two recipes: added rows do not change the nouns or the heads.
    shared = {"source": manifest_recipe(config), "embed": embed, "clusters": config.clusters, "seed": config.seed}
    shared["train_sample"] = inputs.method.train_sample
    nouns = None
    if inputs.vocabulary is not None:
        nouns = planner.trained("semantics", {**shared, "vocabulary": inputs.vocabulary, "space": inputs.space})
    # A model of an earlier format is made again: this version could not read it.
    heads = {**shared, "semantics": nouns, "method": inputs.method.model_dump(mode="json"), "format": FORMAT}
    model = planner.trained("train", heads)
    assign = {"model": model, "embed": embed, "lineage": inputs.lineage}
    final: dict[str, Any] = {"manifest": inputs.manifest}
    tuning: dict[str, Any] = {}
    if config.finetune.enabled:
        # The same table as that of a run that is not fine-tuned: neither does it again.
        baseline = planner.growing("baseline", assign, name_of="assign")
        recipe = {**{key: shared[key] for key in ("source", "embed", "seed")}, "train": model}
        tuned = planner.trained("finetune", {**recipe, "finetune": config.finetune.training})
        tuning = {"finetune": tuned, "refused": planner.refusal()}
        if not tuning["refused"]:
            again = planner.growing("reembed", {"encoder": {"finetune": tuned}, **seen}, name_of="embed")
            assign = {**assign, "model": tuned, "embed": again}
            final["baseline"] = baseline
    final["assign"] = planner.growing("assign", assign)
    shown = config.report
    clusters = {**final, "most_typical": shown.most_typical, "least_typical": shown.least_typical}
    described = planner.fixed("describe", clusters)
    scored = planner.fixed("evaluate", {**final, "semantics": nouns})
    page = {"clusters": described, "evaluation": scored, "report": shown.model_dump(mode="json"), **tuning}
    planner.fixed("report", page)
    return planner.steps


def for_model(folder: RunFolder, inputs: Inputs, model: str) -> dict[str, Step]:
    """The plan of assigning new pictures to the clusters of a finished model; `model`: a hash of it."""
    planner = _Planner(folder, inputs)
    planner.fixed("manifest", manifest_recipe(inputs.config), inputs.manifest)
    embed = planner.growing("embed", {"encoder": inputs.encoder, **_limits(inputs.config)})
    assign = planner.growing("assign", {"model": model, "embed": embed, "lineage": inputs.lineage})
    planner.fixed("drift", {"manifest": inputs.manifest, "assign": assign})
    return planner.steps


def _limits(config: RunConfig) -> dict[str, Any]:
    """What decides, besides the encoder, which pictures are embedded."""
    return config.encoder.model_dump(include={"max_bytes", "max_pixels"}) if config.images else {}


class _Planner:
    def __init__(self, folder: RunFolder, inputs: Inputs) -> None:
        self.folder, self.inputs = folder, inputs
        self.steps: dict[str, Step] = {}

    def fixed(self, stage: str, recipe: dict[str, Any], name: str | None = None) -> str:
        """A stage whose result depends on the recipe alone."""
        return self._add(stage, recipe, name or fingerprint(stage, recipe))

    def growing(self, stage: str, recipe: dict[str, Any], name_of: str | None = None) -> str:
        """A row-incremental stage: the same folder takes the rows that are added later. `name_of`: the stage that would write the same."""
        return self._add(stage, recipe, fingerprint(name_of or stage, recipe), grows=True)

    def trained(self, stage: str, recipe: dict[str, Any]) -> str:
        """A stage that is kept when rows are added, and named after the rows it saw first."""
        kept = None if self.inputs.retrain else self.folder.latest_with(stage, recipe)
        name = kept.fingerprint if kept else fingerprint(stage, recipe, self.inputs.manifest)
        return self._add(stage, recipe, name, grows=stage == "semantics")

    def refusal(self) -> str:
        """Why the tuned encoder is refused; empty if it is not, or not known yet."""
        marker = self.steps["finetune"].marker
        return refusal(marker.facts["guard"], self.inputs.config.finetune) if marker else ""

    def _add(self, stage: str, recipe: dict[str, Any], name: str, grows: bool = False) -> str:
        marker = self.folder.find(stage, name)
        if marker is None:
            reason = self._change(stage, recipe)
        elif grows and marker.facts["manifest"] != self.inputs.manifest:
            reason = "the manifest has changed since: its new rows are to be done"
        else:
            reason = f"done on {marker.finished[:16].replace('T', ' ')} UTC"
        run = not reason.startswith("done on")
        self.steps[stage] = Step(stage, name, recipe, reason, marker, run)
        return name

    def _change(self, stage: str, recipe: dict[str, Any]) -> str:
        current = self.folder.marker(stage)
        if current is None:
            return "not done yet"
        changed = [key for key in recipe if recipe[key] != current.recipe.get(key)]
        return f"changed: {', '.join(changed)}" if changed else "the images have changed"
