"""The stages in order: check everything that can be checked, plan, run what is not done, say what came of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from raycluster.compute import interrupts, work
from raycluster.compute.errors import with_plain_errors
from raycluster.config import AssignConfig, RunConfig
from raycluster.errors import ConfigError, RayclusterError
from raycluster.model.files import load_model
from raycluster.pipeline import new_pictures
from raycluster.pipeline.context import RunContext
from raycluster.pipeline.exclusive import alone, check_writable
from raycluster.pipeline.plan import make_plan
from raycluster.pipeline.prepare import prepare
from raycluster.pipeline.stage import Outcome, Stage
from raycluster.pipeline.stages import FACTS, NEW_PICTURES, RUN
from raycluster.pipeline.stages.train import TrainFacts
from raycluster.pipeline.step import Step
from raycluster.section import Section, validate
from raycluster.storage.location import locate
from raycluster.storage.s3 import from_environment
from raycluster.tables.markers import MODEL_FOLDER, Marker, RunFolder, now

log = logging.getLogger(__name__)


@dataclass
class RunResult:
    """What a command did; printed as the final JSON line."""

    command: str
    status: str
    output: str
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For each stage `{state, rows, seconds}`; state is `ran`, `skipped`, or with `dry_run` `would run`."""
    tables: dict[str, str] = field(default_factory=dict)
    model: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    report: str | None = None
    warnings: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain data, in the order of the design."""
        return asdict(self)


LISTING = ("run", "manifest", "demo")
"""Commands that list the images. The others, which do one stage, use the manifest that is there, if there is one."""


def run(
    config: RunConfig | dict[str, Any],
    *,
    until: str = "report",
    retrain: bool = False,
    retry_failed: bool = False,
    dry_run: bool = False,
    command: str = "run",
) -> RunResult:
    """Run every stage up to `until` that is not done yet.

    `config`: a :class:`RunConfig` or the same as plain data. `retrain`: train again although only rows were added.
    `retry_failed`: read the images again that could not be read. `dry_run`: write nothing, only say what would run and why.
    `command`: the name that the result bears; with one that is not in `LISTING`, the images are not listed again if there is a manifest of
    the same sources. Raises :class:`RayclusterError` and its subclasses.
    """
    settings = config if isinstance(config, RunConfig) else validate(config, RunConfig)
    # Other machines of the cluster may have other variables.
    settings = settings.model_copy(update={"storage": from_environment(settings.storage)})
    names = [stage.name for stage in RUN]
    if until not in names:
        raise ConfigError(f"until: there is no stage {until!r}; choose one of {', '.join(names)}")
    _check_switch(RUN[names.index(until)], settings)
    folder = RunFolder(locate(settings.output, settings.storage), FACTS)
    result = RunResult(command, "unfinished", folder.root.uri)

    def begin() -> RunContext:
        return prepare(settings, folder, retrain, retry_failed, lists=command in LISTING, dry_run=dry_run)

    return with_plain_errors(lambda: _carry_out(settings, folder, result, begin, RUN, until, dry_run))


def assign(*, retry_failed: bool = False, dry_run: bool = False, **given: Any) -> RunResult:
    """Assign new pictures to the clusters of a finished model, flag those unlike anything it has seen, and report drift.

    `given`: the fields of :class:`AssignConfig`, of which `model`, `output` and one of `images` and `embeddings` are needed.
    `retry_failed` and `dry_run` as in :func:`run`, and as there what is done stays done: pictures added later are assigned alone. The
    result's `metrics` are those of `drift.json` (:func:`raycluster.model.drift.drift`). Raises :class:`RayclusterError` and its subclasses.
    """
    settings = validate(given, AssignConfig, "options")
    settings = settings.model_copy(update={"storage": from_environment(settings.storage)})
    model = load_model(settings.model, settings.storage)
    folder = RunFolder(locate(settings.output, settings.storage), FACTS)
    new_pictures.check_output(folder, model)
    result = RunResult("assign", "unfinished", folder.root.uri, model=model.folder.uri)

    def begin() -> RunContext:
        return new_pictures.prepare(settings, model, folder, retry_failed, dry_run)

    last = NEW_PICTURES[-1].name
    return with_plain_errors(lambda: _carry_out(settings, folder, result, begin, NEW_PICTURES, last, dry_run))


def _check_switch(stage: Stage, settings: RunConfig) -> None:
    if stage.switch is None:
        return
    section, field_name = stage.switch.split(".")
    if not settings.model_dump()[section][field_name]:
        raise ConfigError(f"{stage.switch} is false, so there is nothing for `{stage.name}` to do; set it to true")


def _carry_out(
    settings: Section,
    folder: RunFolder,
    result: RunResult,
    begin: Callable[[], RunContext],
    stages: Sequence[Stage],
    until: str,
    dry_run: bool,
) -> RunResult:
    """Do what is not done of the stages up to `until`, under the folder's lock. `begin` checks everything that can be checked."""
    if not dry_run:
        check_writable(folder)
    with interrupts.noticed(), nullcontext() if dry_run else alone(folder, (stage.folder for stage in stages)):
        ctx = begin()
        ctx.warnings = result.warnings
        make_plan(ctx, stages)
        if not dry_run:
            folder.set_plan(_paths(ctx))
            # From the start: who finds the folder sees what it is, and with it tasks can tell dead credentials from a private object.
            _record(settings, folder, result, stages)
        for stage in stages:
            work.check()
            step = ctx.plan.get(stage.name)
            if step is not None and dry_run:
                _describe(step, result)
            elif step is not None:
                _run_or_skip(ctx, stage, step, result)
                if step.runs:
                    _plan_again(ctx, stages)
            if stage.name == until:
                break
        if result.metrics.get("drifted"):
            result.warnings += result.metrics["verdict"]
        result.status = "ok"
        if not dry_run:
            _record(settings, folder, result, stages)
    return result


def _plan_again(ctx: RunContext, stages: Sequence[Stage]) -> None:
    """Plan the rest of the run: what a stage has found may change what comes after it."""
    before = _paths(ctx)
    make_plan(ctx, stages)
    if _paths(ctx) != before:
        ctx.folder.set_plan(_paths(ctx))


def _paths(ctx: RunContext) -> dict[str, str]:
    """The folders of the planned stages, in order."""
    return {stage: step.path for stage, step in ctx.plan.items()}


def _describe(step: Step, result: RunResult) -> None:
    """Say what would be done."""
    state = "would run" if step.runs else "would be skipped"
    log.info("%-9s %s: %s", step.stage, state, step.reason)
    rows = step.marker.rows if step.marker else None
    result.stages[step.stage] = {"state": state, "reason": step.reason, "rows": rows, "seconds": 0.0}


def _run_or_skip(ctx: RunContext, stage: Stage, step: Step, result: RunResult) -> None:
    """Run or skip one stage, and note it in the result."""
    state, seconds = "skipped", 0.0
    if step.runs:
        log.info("%-9s running: %s", stage.name, step.reason)
        started = time.perf_counter()
        outcome = stage.run(ctx, step)
        seconds = round(time.perf_counter() - started, 2)
        work.check()
        marker = _finish(ctx, stage, step, outcome, seconds)
        state = "ran"
        note = f" · {outcome.note}" if outcome.note else ""
        log.info("%-9s %d rows in %.1f s%s", stage.name, outcome.rows, seconds, note)
    else:
        if step.marker is None:
            raise RayclusterError(
                f"{stage.name}: the stage was skipped although it has no result; this is a bug in raycluster, so report it"
            )
        log.info("%-9s skipped: %s", stage.name, step.reason)
        # Gone back to an earlier configuration: its result becomes the current one again.
        marker = _judged(ctx, stage, step.marker)
        if ctx.folder.marker(stage.name) != marker:
            ctx.folder.finish(marker)
    result.stages[stage.name] = {"state": state, "rows": marker.rows, "seconds": seconds}
    _point(result, ctx.folder, stage, marker)
    if stage.after is not None:
        stage.after(ctx)


def _finish(ctx: RunContext, stage: Stage, step: Step, outcome: Outcome, seconds: float) -> Marker:
    """Write the marker of a stage that ran."""
    earlier = step.marker.seconds if step.marker and stage.keeps.follows_rows else 0.0
    marker = Marker(
        stage=stage.name,
        fingerprint=step.fingerprint,
        path=step.path,
        recipe=step.recipe,
        rows=outcome.rows,
        statuses=outcome.statuses,
        seconds=round(earlier + seconds, 2),
        finished=now(),
        facts=outcome.facts.model_dump(mode="json"),
    )
    marker = _judged(ctx, stage, marker)
    ctx.folder.finish(marker)
    return marker


def _judged(ctx: RunContext, stage: Stage, marker: Marker) -> Marker:
    return marker if stage.judged is None else stage.judged(ctx, marker)


def _point(result: RunResult, folder: RunFolder, stage: Stage, marker: Marker) -> None:
    """Say in the result where a stage's result lies."""
    place = folder.located(marker)
    if stage.figures is not None:
        result.metrics = (place / stage.figures).read_json()
    if stage.folder == MODEL_FOLDER:
        result.model = place.uri
    if stage.page is not None:
        result.report = (place / stage.page).uri
    if stage.table is not None:
        result.tables[stage.table] = place.uri


def _record(config: Section, folder: RunFolder, result: RunResult, stages: Sequence[Stage]) -> None:
    trained = folder.marker("train")
    facts = trained.typed(TrainFacts) if trained else None
    packages = ("raycluster", "ray", "torch", "open_clip_torch", "pyarrow", "numpy", "scikit-learn")
    (folder.root / "run.json").write_json(
        {
            "config": config.model_dump(mode="json"),
            "versions": {package: version(package) for package in packages},
            "written": now(),
            "method": facts.constants if facts else None,
            "training": facts.training if facts else None,
            "stages": {
                stage.name: marker.path for stage in stages if (marker := folder.marker(stage.name)) is not None
            },
            "result": result.as_json(),
        }
    )
