"""Test the plan: which stages a change makes run again, and which earlier results are used."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from raycluster.compute.resources import Resources
from raycluster.config import MethodConfig, RunConfig
from raycluster.methods import registry
from raycluster.pipeline.context import Manifest, RunContext, Vocabulary
from raycluster.pipeline.plan import make_plan
from raycluster.pipeline.prepare import sized
from raycluster.pipeline.stage import Keeps, Outcome, Recipe, Stage
from raycluster.pipeline.stages import NEW_PICTURES, RUN
from raycluster.pipeline.step import Step
from raycluster.section import validate
from raycluster.storage.location import locate
from raycluster.tables.markers import Marker, RunFolder, now

STAGES = tuple(stage.name for stage in RUN)
PLAIN = tuple(name for name in STAGES if name not in ("shard", "baseline", "finetune", "reembed"))
GOOD = {"agreement": 0.9, "clusters_before": 9.0, "clusters_after": 9.0, "consistency_before": 0.8,
        "consistency_after": 0.79, "imbalance_before": 0.1, "imbalance_after": 0.1}  # fmt: skip
FACTS = {"lineage": "m1", "next_row_id": 1, "constants": {}, "training": {}, "refused": ""}
TUNED = {"finetune": {"enabled": True}}


def config(**changes: Any) -> RunConfig:
    return validate({"images": "photos", "output": "out", "clusters": 10, **changes}, RunConfig)


def context(
    folder: RunFolder,
    run: RunConfig | None = None,
    *,
    method: str = "consensus",
    manifest: str = "m1",
    lineage: str = "m1",
    vocabulary: str = "v1",
    **changes: Any,
) -> RunContext:
    """The context that `prepare` makes of a configuration, but without any image."""
    return RunContext(
        config=run or config(),
        folder=folder,
        method=registry.configure(MethodConfig(name=method, train_sample=1000)),
        resources=Resources(2, 2, 0, encoder_actors=1, train_workers=1),
        vocabulary=Vocabulary(nouns=["fish"], fingerprint=vocabulary),
        manifest=Manifest(row_ids=np.arange(1), fingerprint=manifest, lineage=lineage, next_row_id=1),
        **{"encoder": "e1", **changes},
    )


def make(
    folder: RunFolder, run: RunConfig | None = None, stages: tuple[Stage, ...] = RUN, **changes: Any
) -> dict[str, Step]:
    ctx = context(folder, run, **changes)
    make_plan(ctx, stages)
    return ctx.plan


def for_model(folder: RunFolder, record: str, **changes: Any) -> dict[str, Step]:
    """The plan of new pictures for the model with this record."""
    return make(folder, stages=NEW_PICTURES, finished_model=SimpleNamespace(record=record), **changes)


def finish(folder: RunFolder, steps: dict[str, Step], manifest: str = "m1", **guard: float) -> None:
    for step in steps.values():
        facts = {**FACTS, "manifest": manifest, "guard": {**GOOD, **guard}}
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
    return [step.stage for step in steps.values() if step.runs]


def test_everything_runs_at_first_and_nothing_after(folder: RunFolder) -> None:
    steps = make(folder)
    assert to_run(steps) == list(PLAIN)
    assert {step.reason for step in steps.values()} == {"not done yet"}
    finish(folder, steps)
    assert to_run(make(folder)) == []


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
    finish(folder, make(folder))
    steps = make(folder, config(**change))
    assert to_run(steps)[0] == first
    assert steps[first].reason == reason


@pytest.mark.parametrize(
    "change", [{"resources": {"train_workers": 2}}, {"max_failed_fraction": 0.5}, {"output": "elsewhere"}]
)
def test_resources_limits_and_places_redo_nothing(folder: RunFolder, change: dict[str, Any]) -> None:
    finish(folder, make(folder))
    assert to_run(make(folder, config(**change))) == []


def test_a_changed_checkpoint_never_reuses_embeddings(folder: RunFolder) -> None:
    finish(folder, make(folder))
    steps = make(folder, encoder="e2", vocabulary="v2")
    assert to_run(steps) == list(PLAIN)[1:]


def test_added_rows_are_embedded_and_assigned_without_training(folder: RunFolder) -> None:
    first = make(folder)
    finish(folder, first)
    steps = make(folder, manifest="m2")
    assert to_run(steps) == ["manifest", "embed", "semantics", "assign", "describe", "evaluate", "report"]
    assert steps["assign"].fingerprint == first["assign"].fingerprint
    assert steps["train"].fingerprint == first["train"].fingerprint


def test_retrain_trains_on_the_added_rows(folder: RunFolder) -> None:
    first = make(folder)
    finish(folder, first)
    steps = make(folder, manifest="m2", retrain=True)
    assert "train" in to_run(steps)
    assert steps["assign"].fingerprint != first["assign"].fingerprint


def test_removed_rows_get_a_fresh_assignment_table(folder: RunFolder) -> None:
    first = make(folder)
    finish(folder, first)
    steps = make(folder, manifest="m2", lineage="l2")
    assert steps["assign"].fingerprint != first["assign"].fingerprint
    assert not steps["train"].runs


def test_going_back_finds_the_earlier_result(folder: RunFolder) -> None:
    finish(folder, make(folder))
    finish(folder, make(folder, config(clusters=11)))
    assert to_run(make(folder)) == []


def test_nouns_are_kept_for_a_method_that_chooses_them_alike(folder: RunFolder) -> None:
    finish(folder, make(folder))
    assert to_run(make(folder, method="tac"))[0] == "train"
    steps = make(folder, method="seic")
    assert to_run(steps)[0] == "semantics"
    assert steps["semantics"].reason == "changed: space"


def test_fine_tuning_comes_between_a_baseline_and_a_second_embedding(folder: RunFolder) -> None:
    finish(folder, make(folder))
    steps = make(folder, config(**TUNED))
    assert list(steps) == [stage for stage in STAGES if stage != "shard"]
    assert to_run(steps) == ["baseline", "finetune", "reembed", "assign", "describe", "evaluate", "report"]
    # The baseline is the table that a run without fine-tuning has made.
    assert steps["baseline"].fingerprint == make(folder)["assign"].fingerprint
    assert steps["assign"].fingerprint != steps["baseline"].fingerprint
    finish(folder, steps)
    assert to_run(make(folder, config(**TUNED))) == []
    assert to_run(make(folder)) == []


def test_a_refused_encoder_leaves_the_model_before(folder: RunFolder) -> None:
    finish(folder, make(folder, config(**TUNED)), clusters_after=5.0)
    steps = make(folder, config(**TUNED))
    assert "reembed" not in steps
    assert steps["assign"].fingerprint == steps["baseline"].fingerprint
    assert to_run(steps) == ["assign", "describe", "evaluate", "report"]
    # With another bound the encoder is judged again, without training.
    wider = make(folder, config(finetune={"enabled": True, "max_lost_clusters": 0.5}))
    assert "reembed" in wider
    assert to_run(wider) == []


@pytest.mark.parametrize(
    "change", [{"gradient_checkpointing": True}, {"checkpoint_seconds": 1}, {"max_lost_consistency": 0.3}]
)
def test_what_the_weights_do_not_depend_on_trains_nothing(folder: RunFolder, change: dict[str, Any]) -> None:
    finish(folder, make(folder, config(**TUNED)))
    assert to_run(make(folder, config(finetune={"enabled": True, **change}))) == []


def test_added_rows_are_embedded_with_both_encoders(folder: RunFolder) -> None:
    finish(folder, make(folder, config(**TUNED)))
    steps = make(folder, config(**TUNED), manifest="m2")
    assert set(STAGES) - set(to_run(steps)) == {"shard", "train", "finetune"}
    assert "finetune" in to_run(make(folder, config(**TUNED), manifest="m2", retrain=True))


def test_new_pictures_are_assigned_once_for_each_model(folder: RunFolder) -> None:
    steps = for_model(folder, "k1")
    assert to_run(steps) == ["manifest", "embed", "assign", "drift"]
    finish(folder, steps)
    assert to_run(for_model(folder, "k1")) == []
    grown = for_model(folder, "k1", manifest="m2")
    assert to_run(grown) == ["manifest", "embed", "assign", "drift"]
    assert grown["assign"].fingerprint == steps["assign"].fingerprint
    other = for_model(folder, "k2")
    assert to_run(other) == ["assign", "drift"]
    assert other["assign"].reason == "changed: model"


def test_a_model_of_an_earlier_format_is_trained_again(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(folder, make(folder))
    monkeypatch.setattr("raycluster.pipeline.stages.train.FORMAT", 3)
    steps = make(folder)
    assert to_run(steps)[0] == "train"
    assert steps["train"].reason == "changed: format"


def test_another_rank_is_another_training(folder: RunFolder) -> None:
    finish(folder, make(folder, config(**TUNED)))
    steps = make(folder, config(finetune={"enabled": True, "rank": 4}))
    assert to_run(steps)[0] == "finetune"
    assert steps["finetune"].reason == "changed: finetune"


def test_shards_come_before_embeddings_of_their_own(folder: RunFolder) -> None:
    without = make(folder)
    finish(folder, without)
    steps = make(folder, config(**TUNED), shard_size=392)
    assert list(steps) == list(STAGES)
    assert steps["embed"].reason == "changed: shards"
    assert steps["embed"].fingerprint != without["embed"].fingerprint
    finish(folder, steps)
    assert to_run(make(folder, config(**TUNED), shard_size=392)) == []
    # Another encoder reads the same shards; the table without shards is found again.
    other = make(folder, config(**TUNED), shard_size=392, encoder="e2")
    assert not other["shard"].runs
    assert other["embed"].runs
    assert to_run(make(folder)) == []


@pytest.mark.parametrize(
    ("change", "size"), [({}, 448), ({"encoder": {"model": "builtin", "max_pixels": 9}}, 392)], ids=["size", "limits"]
)
def test_another_size_or_limit_makes_other_shards(folder: RunFolder, change: dict[str, Any], size: int) -> None:
    first = make(folder, shard_size=392)
    finish(folder, first)
    steps = make(folder, config(**change), shard_size=size)
    assert to_run(steps)[:2] == ["shard", "embed"]
    assert steps["shard"].fingerprint != first["shard"].fingerprint


def test_added_rows_are_sharded_into_the_same_folder(folder: RunFolder) -> None:
    first = make(folder, shard_size=392)
    finish(folder, first)
    steps = make(folder, manifest="m2", shard_size=392)
    assert to_run(steps)[:3] == ["manifest", "shard", "embed"]
    assert steps["shard"].fingerprint == first["shard"].fingerprint


def test_a_stage_is_one_file_and_a_word_in_a_list(folder: RunFolder) -> None:
    def recipe(ctx: RunContext) -> Recipe | None:
        return Recipe({"assign": ctx.fingerprint("assign"), "clusters": ctx.config.clusters})

    def run(ctx: RunContext, step: Step) -> Outcome:
        (ctx.place(step) / "count.json").write_json({"clusters": ctx.config.clusters})
        return Outcome(1)

    toy = Stage(name="toy", folder="toys", keeps=Keeps.FIXED, recipe=recipe, run=run, figures="count.json")
    steps = make(folder, stages=(*RUN, toy))
    assert to_run(steps) == [*PLAIN, "toy"]
    finish(folder, steps)
    assert to_run(make(folder, stages=(*RUN, toy))) == []
    steps = make(folder, config(clusters=11), stages=(*RUN, toy))
    assert steps["toy"].reason == "changed: assign, clusters"


@pytest.mark.parametrize(
    ("rows", "clusters", "retrain", "given", "size"),
    [
        (15_000, 10, False, {}, 200_000),  # both defaults mean all images
        (20_001, 10, False, {}, 20_000),
        (200_000, 2000, False, {}, 400_000),
        (15_000, 11, False, {}, 20_000),
        (15_000, 10, True, {}, 20_000),
        (15_000, 10, False, {"train_sample": 5000}, 5000),
    ],
)
def test_heads_of_the_former_default_stay_if_todays_takes_the_same_images(
    folder: RunFolder, rows: int, clusters: int, retrain: bool, given: dict[str, int], size: int
) -> None:
    for name in ("semantics", "train"):
        recipe = {"train_sample": 200_000, "clusters": 2000 if clusters == 2000 else 10}
        folder.finish(
            Marker(
                stage=name, fingerprint=name, path="x", recipe=recipe, rows=rows, seconds=1.0, finished=now(), facts={}
            )
        )
    method = registry.configure(MethodConfig.model_validate({"name": "consensus", **given}))
    assert sized(method, clusters, None if retrain else folder).train_sample == size


def test_the_default_sample_of_other_methods_is_a_constant(folder: RunFolder) -> None:
    assert sized(registry.configure(MethodConfig(name="kmeans")), 10, folder).train_sample == 1_000_000
