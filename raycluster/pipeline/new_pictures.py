"""Check the input of `raycluster assign --model`, which assigns new pictures to the clusters of a finished model.

The output is a folder like that of a run, with the stages of `NEW_PICTURES`.
"""

from __future__ import annotations

from dataclasses import replace

from raycluster.compute.connect import connect
from raycluster.compute.resources import resolve
from raycluster.config import AssignConfig, RunConfig
from raycluster.encoder import ready_made
from raycluster.errors import ConfigError
from raycluster.model.model import Model
from raycluster.pipeline.cluster_checks import find_common
from raycluster.pipeline.context import RunContext
from raycluster.pipeline.prepare import embedding_files, list_inputs
from raycluster.section import validate
from raycluster.tables.markers import RunFolder


def prepare(
    settings: AssignConfig, model: Model, folder: RunFolder, retry_failed: bool, dry_run: bool = False
) -> RunContext:
    """Check everything that can be wrong, cheapest first, and return the context for the stages. Raises :class:`ConfigError`."""
    config = _as_run(settings, model)
    if config.images is None:
        dim = ready_made.dimension(embedding_files(config, folder))
        if dim not in (None, model.record["dim"]):
            raise ConfigError(
                f"embeddings: they have {dim} dimensions, but the model takes {model.record['dim']}; make them with the model's encoder"
            )
    elif model.encoder_config is None:
        raise ConfigError(
            f"images: the model {model.folder.uri} was trained on ready-made embeddings and cannot read pictures; "
            "embed the pictures with the same encoder and give `embeddings` instead"
        )
    connect()
    resources = resolve(config.resources)
    spec = model.spec_on("cuda" if resources.use_gpu else "cpu") if config.images else None
    manifest = list_inputs(config, folder, retry_failed, dry_run)
    resources = replace(resources, common=find_common(config, folder.root, manifest.samples, spec))
    return RunContext(
        config=config,
        folder=folder,
        method=model.method.config,
        resources=resources,
        # The fingerprint with the precision of the training: another precision on this device is no reason to repeat everything.
        encoder=model.spec.fingerprint if spec else "provided",
        spec=spec,
        manifest=manifest,
        finished_model=model,
    )


def check_output(folder: RunFolder, model: Model) -> None:
    """Raise :class:`ConfigError` if the output is the folder of a run or lies in the folder of the model."""
    of_a_run = "train" in folder.plan().stages
    if of_a_run or f"{folder.root.uri}/".startswith(f"{model.folder.uri}/"):
        what = "a run" if of_a_run else "the model"
        raise ConfigError(
            f"output: {folder.root.uri} is the folder of {what}, whose tables would mix with the new ones; choose another `output`"
        )


def _as_run(settings: AssignConfig, model: Model) -> RunConfig:
    """Return the settings as the configuration of a run with this model, because the stages read a :class:`RunConfig`."""
    given = settings.model_dump(exclude={"model"}, exclude_none=True)
    encoder = {} if model.encoder_config is None else {"encoder": model.encoder_config.model_dump()}
    known = {"clusters": model.method.n_clusters, "seed": model.record["seed"]}
    return validate({**given, **encoder, **known}, RunConfig, "options")
