"""The stages in order: check everything that can be checked, plan, run what is not done, say what came of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from raycluster import interrupts, lock, new_pictures, plan, work
from raycluster.config import AssignConfig, RunConfig, Section, validate
from raycluster.distributed import plainly
from raycluster.errors import ConfigError, RayclusterError
from raycluster.model_files import load_model
from raycluster.plan import STAGES, Step
from raycluster.prepare import prepare
from raycluster.run_folder import FIGURES, FOLDERS, RunFolder, check_failures, now
from raycluster.run_tables import Outcome
from raycluster.s3 import from_environment
from raycluster.stages import Stages
from raycluster.storage import locate

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
    `retry_failed`: read the images again that could not be read. `dry_run`: write nothing, only say what would run and why. Raises :class:`RayclusterError` and its subclasses.
    """
    settings: RunConfig = config if isinstance(config, RunConfig) else validate(config)
    # Other machines of the cluster may have other variables.
    settings = settings.model_copy(update={"storage": from_environment(settings.storage)})
    if until not in STAGES:
        raise ConfigError(f"stage {until!r} is unknown; stages are {', '.join(STAGES)}")
    if until == "finetune" and not settings.finetune.enabled:
        raise ConfigError("finetune.enabled is false, so there is nothing to fine-tune; set it to true")
    if until == "shard" and not settings.shards.enabled:
        raise ConfigError("shards.enabled is false, so there are no shards to write; set it to true")
    folder = RunFolder(locate(settings.output, settings.storage))
    result = RunResult(command, "unfinished", folder.root.uri)

    def begin() -> Stages:
        ready = prepare(settings, folder, retrain, retry_failed)
        return Stages(ready, plan.make(folder, ready.inputs), result.warnings)

    order = STAGES[: STAGES.index(until) + 1]
    return plainly(lambda: _carry_out(settings, folder, result, begin, order, dry_run))


def assign(*, retry_failed: bool = False, dry_run: bool = False, **given: Any) -> RunResult:
    """Assign new pictures to the clusters of a finished model, flag those unlike anything it has seen, and report drift.

    `given`: the fields of :class:`AssignConfig`, of which `model`, `output` and one of `images` and `embeddings` are needed.
    `retry_failed` and `dry_run` as in :func:`run`, and as there what is done stays done: pictures added later are assigned alone. The
    result's `metrics` are those of `drift.json` (:func:`raycluster.drift.drift`). Raises :class:`RayclusterError` and its subclasses.
    """
    settings: AssignConfig = validate(given, AssignConfig, "options")
    settings = settings.model_copy(update={"storage": from_environment(settings.storage)})
    model = load_model(settings.model, settings.storage)
    folder = RunFolder(locate(settings.output, settings.storage))
    new_pictures.check_output(folder, model)
    result = RunResult("assign", "unfinished", folder.root.uri, model=model.folder.uri)

    def begin() -> Stages:
        ready = new_pictures.prepare(settings, model, folder, retry_failed)
        steps = plan.for_model(folder, ready.inputs, new_pictures.identity(model))
        return new_pictures.NewPictures(ready, steps, result.warnings, known=model)

    return plainly(lambda: _carry_out(settings, folder, result, begin, tuple(FOLDERS), dry_run))


def _carry_out(
    settings: Section,
    folder: RunFolder,
    result: RunResult,
    begin: Callable[[], Stages],
    order: Sequence[str],
    dry_run: bool,
) -> RunResult:
    """Do what is not done of the planned stages in `order`, under the folder's lock; `begin` checks everything and plans."""
    if not dry_run:
        _check_writable(folder)
    with interrupts.noticed(), nullcontext() if dry_run else _alone(folder):
        stages = begin()
        if not dry_run:
            folder.set_plan(stages.steps)
            # From the start: who finds the folder sees what it is, and with it tasks can tell dead credentials from a private object.
            _record(settings, folder, result)
        for stage in order:
            # Looked up anew: what follows fine-tuning depends on what came of it.
            if (step := stages.steps.get(stage)) is None:
                continue
            work.check()
            _do(stages, step, result, dry_run)
            if stage == "finetune" and not dry_run:
                _go_on_with_the_better(stages)
            if stage in ("shard", "embed", "reembed") and not dry_run:
                _gate_failures(stages, stage)
        if result.metrics.get("drifted"):
            result.warnings += result.metrics["verdict"]
        result.status = "ok"
        if not dry_run:
            _record(settings, folder, result)
    return result


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """Hold the lock of the run folder; before it is released, all that this run has going on in Ray is ended."""
    going, ends = work.Work(), ExitStack()
    try:
        mine = ends.enter_context(lock.held(folder.root, on_loss=going.end))
        folder.remove_drafts()
        ends.callback(lambda: folder.remove_drafts() if not mine.lost else None)
        ends.enter_context(work.of_run(going, mine.check))
        try:
            yield
        except Exception:
            # A lost lock ends all work, and stages then fail with errors of many kinds. `check` raises the one that tells why.
            mine.check()
            raise
    finally:
        with interrupts.shielded():
            ends.close()


def _check_writable(folder: RunFolder) -> None:
    probe = folder.root / "_writable"
    try:
        try:
            probe.write_bytes(b"")
        finally:
            probe.delete()
    except OSError as error:
        raise ConfigError(f"output: {folder.root.uri} cannot be written ({error}); choose another `output`") from None


def _do(stages: Stages, step: Step, result: RunResult, dry_run: bool) -> None:
    """Run or skip one stage, and note it in the result."""
    marker, state, seconds = step.marker, "skipped", 0.0
    if dry_run:
        state = "would run" if step.run else "would be skipped"
        log.info("%-9s %s: %s", step.stage, state, step.reason)
        result.stages[step.stage] = {
            "state": state,
            "reason": step.reason,
            "rows": marker.rows if marker else None,
            "seconds": 0.0,
        }
        return
    if step.run:
        log.info("%-9s running: %s", step.stage, step.reason)
        started = time.perf_counter()
        outcome: Outcome = getattr(stages, step.stage)(step)
        seconds = round(time.perf_counter() - started, 2)
        work.check()
        marker = stages.finish(step, outcome, seconds)
        state = "ran"
        log.info(
            "%-9s %d rows in %.1f s%s", step.stage, outcome.rows, seconds, f" · {outcome.note}" if outcome.note else ""
        )
    elif marker is not None:
        log.info("%-9s skipped: %s", step.stage, step.reason)
        # Gone back to an earlier configuration: its result becomes the current one again.
        marker = stages.current(marker)
        if stages.folder.marker(step.stage) != marker:
            stages.folder.finish(marker)
    if marker is None:
        raise RayclusterError(f"{step.stage}: skipped without a result; this is a bug in raycluster")
    result.stages[step.stage] = {"state": state, "rows": marker.rows, "seconds": seconds}
    _point(result, stages.folder, step.stage, marker.path)


def _point(result: RunResult, folder: RunFolder, stage: str, path: str) -> None:
    place = folder.root / path
    if stage in FIGURES:
        result.metrics = (place / FIGURES[stage]).read_json()
    if stage in ("train", "finetune"):
        result.model = place.uri
    elif stage == "report":
        result.report = (place / "index.html").uri
    elif stage != "evaluate":
        result.tables["baseline" if stage == "baseline" else path.split("/")[0]] = place.uri


def _go_on_with_the_better(stages: Stages) -> None:
    """Plan the rest anew: with the tuned encoder, or without it if the guard refuses it."""
    stages.steps = plan.make(stages.folder, stages.ready.inputs)
    stages.folder.set_plan(stages.steps)
    marker = stages.folder.marker("finetune")
    if marker and marker.facts["refused"]:
        log.warning("finetune  %s", marker.facts["refused"])
        stages.warnings.append(marker.facts["refused"])


def _gate_failures(stages: Stages, stage: str) -> None:
    """After every stage that reads all pictures, skipped or not: a raised limit must be able to let a finished table pass."""
    counts, examples = stages.failures(stage)
    check_failures(counts, examples, stages.config.max_failed_fraction)
    failed = sum(n for status, n in counts.items() if status != "ok")
    if failed:
        histogram = ", ".join(f"{status} {n}" for status, n in sorted(counts.items()) if status != "ok")
        warning = f"{failed} of {sum(counts.values())} images could not be read: {histogram}"
        # Of shards and of embeddings it is the same.
        if warning not in stages.warnings:
            stages.warnings.append(warning)


def _record(config: Section, folder: RunFolder, result: RunResult) -> None:
    train = folder.marker("train")
    packages = ("raycluster", "ray", "torch", "open_clip_torch", "pyarrow", "numpy", "scikit-learn")
    (folder.root / "run.json").write_json(
        {
            "config": config.model_dump(mode="json"),
            "versions": {package: version(package) for package in packages},
            "written": now(),
            "method": train.facts["constants"] if train else None,
            "training": train.facts["training"] if train else None,
            "stages": {stage: marker.path for stage in FOLDERS if (marker := folder.marker(stage)) is not None},
            "result": result.as_json(),
        }
    )
