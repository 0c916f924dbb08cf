from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raycluster.config import MethodConfig, RunConfig, validate
from raycluster.plan import STAGES, Inputs, Step, make
from raycluster.run_folder import Marker, RunFolder, now
from raycluster.storage import locate


def config(**changes: Any) -> RunConfig:
    return validate({"images": "photos", "output": "out", "clusters": 10, **changes})


def inputs(run: RunConfig | None = None, **changes: Any) -> Inputs:
    given = Inputs(
        run or config(),
        MethodConfig(),
        manifest="m1",
        lineage="m1",
        encoder="e1",
        space={"kind": "tac"},
        vocabulary="v1",
    )
    return replace(given, **changes)


def finish(folder: RunFolder, steps: dict[str, Step], manifest: str = "m1") -> None:
    for step in steps.values():
        facts = {"manifest": manifest}
        folder.finish(
            Marker(
                stage=step.stage,
                fingerprint=step.fingerprint,
                path="x",
                recipe=step.recipe,
                rows=1,
                seconds=1.0,
                finished=now(),
                facts=facts,
            )
        )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(locate(str(tmp_path)))


def to_run(steps: dict[str, Step]) -> list[str]:
    return [step.stage for step in steps.values() if step.run]


def test_everything_runs_at_first_and_nothing_after(folder: RunFolder) -> None:
    steps = make(folder, inputs())
    assert to_run(steps) == list(STAGES)
    assert {step.reason for step in steps.values()} == {"not done yet"}
    finish(folder, steps)
    assert to_run(make(folder, inputs())) == []


@pytest.mark.parametrize(
    ("change", "first", "reason"),
    [
        ({"clusters": 11}, "semantics", "changed: clusters"),
        ({"seed": 1}, "semantics", "changed: seed"),
        ({"report": {"most_typical": 3}}, "describe", "changed: most_typical"),
        ({"report": {"map_sample": 3}}, "report", "changed: report"),
        ({"encoder": {"model": "builtin", "max_pixels": 9}}, "embed", "changed: max_pixels"),
        ({"labels": "folder"}, "semantics", "changed: source"),
    ],
)
def test_a_change_redoes_what_depends_on_it(folder: RunFolder, change: dict[str, Any], first: str, reason: str) -> None:
    finish(folder, make(folder, inputs()))
    steps = make(folder, inputs(config(**change)))
    assert to_run(steps)[0] == first
    assert steps[first].reason == reason


@pytest.mark.parametrize(
    "change", [{"resources": {"train_workers": 2}}, {"max_failed_fraction": 0.5}, {"output": "elsewhere"}]
)
def test_resources_limits_and_places_redo_nothing(folder: RunFolder, change: dict[str, Any]) -> None:
    finish(folder, make(folder, inputs()))
    assert to_run(make(folder, inputs(config(**change)))) == []


def test_a_changed_checkpoint_never_reuses_embeddings(folder: RunFolder) -> None:
    finish(folder, make(folder, inputs()))
    steps = make(folder, inputs(encoder="e2", vocabulary="v2"))
    assert to_run(steps) == list(STAGES)[1:]


def test_added_rows_are_embedded_and_assigned_without_training(folder: RunFolder) -> None:
    first = make(folder, inputs())
    finish(folder, first)
    steps = make(folder, inputs(manifest="m2"))
    assert to_run(steps) == ["manifest", "embed", "semantics", "assign", "describe", "evaluate", "report"]
    assert steps["assign"].fingerprint == first["assign"].fingerprint
    assert steps["train"].fingerprint == first["train"].fingerprint


def test_retrain_trains_on_the_added_rows(folder: RunFolder) -> None:
    first = make(folder, inputs())
    finish(folder, first)
    steps = make(folder, inputs(manifest="m2", retrain=True))
    assert "train" in to_run(steps)
    assert steps["assign"].fingerprint != first["assign"].fingerprint


def test_removed_rows_get_a_fresh_assignment_table(folder: RunFolder) -> None:
    first = make(folder, inputs())
    finish(folder, first)
    steps = make(folder, inputs(manifest="m2", lineage="l2"))
    assert steps["assign"].fingerprint != first["assign"].fingerprint
    assert not steps["train"].run


def test_going_back_finds_the_earlier_result(folder: RunFolder) -> None:
    finish(folder, make(folder, inputs()))
    finish(folder, make(folder, inputs(config(clusters=11))))
    assert to_run(make(folder, inputs())) == []


def test_nouns_are_kept_for_a_method_that_chooses_them_alike(folder: RunFolder) -> None:
    finish(folder, make(folder, inputs()))
    alike = inputs(method=MethodConfig(name="tac"))
    assert to_run(make(folder, alike))[0] == "train"
    other = inputs(method=MethodConfig(name="seic"), space={"kind": "seic"})
    steps = make(folder, other)
    assert to_run(steps)[0] == "semantics"
    assert steps["semantics"].reason == "changed: space"
