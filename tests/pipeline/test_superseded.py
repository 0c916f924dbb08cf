"""Test which markers and folders of a run are superseded: current results, and what they were made of, must stay."""

from __future__ import annotations

from typing import Any

from raycluster.pipeline.superseded import Superseded, find_superseded
from raycluster.section import fingerprint
from raycluster.tables.markers import Marker, now

FOLDER = {"embed": "embeddings", "reembed": "embeddings", "semantics": "semantics", "train": "model", "finetune": "model",
          "baseline": "assignments", "assign": "assignments", "describe": "clusters", "evaluate": "evaluation",
          "report": "report", "manifest": "manifest", "drift": "drift", "shard": "shards"}  # fmt: skip


def name(*parts: Any) -> str:
    return fingerprint(list(parts))


def marker(stage: str, key: str, path: str = "", facts: dict[str, Any] | None = None, **recipe: Any) -> Marker:
    return Marker(
        stage=stage,
        fingerprint=key,
        path=path or f"{FOLDER[stage]}/{key}",
        recipe=recipe,
        rows=3,
        seconds=1.0,
        finished=now(),
        facts=facts or {},
    )


def manifest(key: str, lineage: str, source: str = "photos") -> Marker:
    return marker("manifest", name(key), facts={"lineage": lineage, "next_row_id": 3}, images=source)


def run(listed: Marker, clusters: int = 4, encoder: str = "e", lineage: str | None = None) -> dict[str, Marker]:
    """The markers of a whole run, with recipes like those of the stages."""
    lineage = listed.facts["lineage"] if lineage is None else lineage
    embed = marker("embed", name("embed", encoder), encoder=encoder)
    semantics = marker("semantics", name("s", encoder, clusters), embed=embed.fingerprint, clusters=clusters)
    train = marker("train", name("t", encoder, clusters), embed=embed.fingerprint, semantics=semantics.fingerprint)
    assign = marker("assign", name("a", encoder, clusters, lineage), lineage=lineage, model=train.fingerprint, embed=embed.fingerprint)  # fmt: skip
    made = {"manifest": listed.fingerprint, "assign": assign.fingerprint}
    describe = marker("describe", name("d", made), **made)
    evaluate = marker("evaluate", name("e", made), **made, semantics=semantics.fingerprint)
    shown = {"clusters": describe.fingerprint, "evaluation": evaluate.fingerprint, "report": {"thumbnail": 96}}
    stages = (listed, embed, semantics, train, assign, describe, evaluate, marker("report", name("r", shown), **shown))
    return {each.stage: each for each in stages}


def folders(*runs: dict[str, Marker]) -> set[str]:
    return {each.path for markers in runs for each in markers.values()}


def planned(markers: dict[str, Marker]) -> dict[str, str]:
    return {stage: each.path for stage, each in markers.items()}


def find(
    current: dict[str, Marker],
    *earlier: dict[str, Marker],
    plan: dict[str, str] | None = None,
    found: set[str] = frozenset(),  # type: ignore[assignment]
) -> Superseded:
    history = list({(m.stage, m.fingerprint): m for markers in (*earlier, current) for m in markers.values()}.values())
    plan = planned(current) if plan is None else plan
    return find_superseded(current, history, plan, folders(current, *earlier) | found)


NOW = run(manifest("m2", "l2"))


def test_a_finished_run_has_nothing_to_delete() -> None:
    assert find(NOW) == Superseded((), (), (), tuple(sorted(NOW[s].path for s in ("embed", "semantics", "assign"))))


def test_an_earlier_configuration_goes_and_what_both_need_stays() -> None:
    other = run(manifest("m2", "l2"), clusters=5)
    found = find(NOW, other)
    gone = {"semantics", "train", "assign", "describe", "evaluate", "report"}
    assert {(each.stage, each.fingerprint) for each in found.markers} == {(s, other[s].fingerprint) for s in gone}
    assert set(found.folders) == {other[stage].path for stage in gone}
    assert NOW["embed"].path in found.tables


def test_another_encoder_goes_with_its_embeddings() -> None:
    other = run(manifest("m2", "l2"), encoder="f")
    found = find(NOW, other)
    assert other["embed"].path in found.folders
    assert other["embed"] in found.markers


def test_a_model_that_was_kept_for_added_rows_stays_and_earlier_manifests_go() -> None:
    first, grown = run(manifest("m1", "l2")), run(manifest("m2", "l2"))
    assert first["train"] == first["train"].model_copy(update={"finished": first["train"].finished})
    current = {**grown, "train": first["train"], "semantics": first["semantics"]}
    found = find(current, first)
    assert first["train"].path not in found.folders
    assert first["semantics"].path not in found.folders
    assert {each.stage for each in found.markers} == {"manifest", "describe", "evaluate", "report"}
    assert first["manifest"].path in found.folders


def test_a_change_that_was_interrupted_leaves_both_the_results_there_are_and_those_begun() -> None:
    changed = run(manifest("m2", "l2"), clusters=5)
    current = {**NOW, "semantics": changed["semantics"]}
    unfinished = {f"training/{changed['train'].fingerprint}", changed["train"].path, changed["assign"].path}
    found = find(current, NOW, plan=planned(changed), found=unfinished)
    assert found.markers == ()
    # The current model was made of other nouns than those of the plan. It must stay servable, and its nouns too.
    assert found.folders == (changed["train"].path,)
    assert {NOW["semantics"].path, changed["assign"].path} <= set(found.tables)


def test_unfinished_work_of_no_plan_goes() -> None:
    lost = {f"{kind}/{name('lost')}" for kind in ("embeddings", "training", "model", "report")}
    assert set(find(NOW, found=lost).folders) == lost
    # An earlier version does not say what its plan was.
    found = find_superseded(NOW, list(NOW.values()), None, lost | folders(NOW))
    assert set(found.folders) == {f"model/{name('lost')}", f"report/{name('lost')}"}
    assert f"embeddings/{name('lost')}" in found.tables


def test_checkpoints_of_a_finished_training_go() -> None:
    own = f"training/{NOW['train'].fingerprint}"
    assert find(NOW, found={own}).folders == (own,)


def test_a_refused_fine_tuning_stays_because_other_bounds_may_accept_it() -> None:
    tuned = marker("finetune", name("tuned"), path=NOW["train"].path, train=NOW["train"].fingerprint)
    found = find({**NOW, "finetune": tuned}, found={f"model/{tuned.fingerprint}"})
    assert found.folders == ()


def test_fine_tuning_stays_with_its_embeddings_and_its_baseline() -> None:
    tuned = marker("finetune", name("tuned"), train=NOW["train"].fingerprint)
    again = marker("reembed", name("again"), encoder={"finetune": tuned.fingerprint})
    baseline = NOW["assign"].model_copy(update={"stage": "baseline"})
    assign = marker("assign", name("better"), lineage="l2", model=tuned.fingerprint, embed=again.fingerprint)
    current = {**NOW, "finetune": tuned, "reembed": again, "baseline": baseline, "assign": assign}
    assert find(current).folders == ()
    # Switched off, it goes, but the table that it shares with a run without it stays.
    found = find(NOW, current)
    assert {each.stage for each in found.markers} == {"finetune", "reembed", "assign"}
    assert set(found.folders) == {tuned.path, again.path, assign.path}


def test_results_that_show_images_that_are_gone_go_though_they_are_current() -> None:
    before = run(manifest("m1", "l1"))
    listed = manifest("m2", "l2")
    found = find({**before, "manifest": listed}, before)
    assert set(found.outdated) == {"describe", "evaluate", "report"}
    assert {each.stage for each in found.markers} == {"manifest", "describe", "evaluate", "report"}
    assert {before["train"].path, before["assign"].path}.isdisjoint(found.folders)
    assert before["assign"].path in found.tables


def test_results_of_fewer_images_stay_until_they_are_made_again() -> None:
    before = run(manifest("m1", "l1"))
    current = {**before, "manifest": manifest("m2", "l1")}
    found = find(current, before)
    assert (found.outdated, [each.stage for each in found.markers]) == ((), ["manifest"])
    # The earlier manifest is not known any more at the next call.
    assert find(current).outdated == ()


def test_a_result_of_the_manifest_alone_is_judged_by_what_is_known_of_that_manifest() -> None:
    before, listed = manifest("m1", "l1"), manifest("m2", "l2")
    drift = marker("drift", name("drift"), manifest=before.fingerprint)
    assert find({"manifest": listed, "drift": drift}, {"manifest": before}).outdated == ("drift",)
    assert find({"manifest": listed, "drift": drift}).outdated == ("drift",)
    grown = manifest("m2", "l1")
    assert find({"manifest": grown, "drift": drift}, {"manifest": before}).outdated == ()


def test_the_listings_go_and_what_is_not_ours_stays() -> None:
    other = {"embeddings/notes", "manifest/tars", "model/mine", "report/2026-01-01"}
    assert find(NOW, found=other).folders == ("manifest/tars",)


def test_a_stage_of_a_later_version_keeps_what_it_was_made_of() -> None:
    old = run(manifest("m2", "l2"), clusters=5)
    later = Marker.model_validate({**marker("describe", name("later"), assign=old["assign"].fingerprint).model_dump(), "stage": "levels", "path": "levels/x"})  # fmt: skip
    found = find({**NOW, "levels": later}, old)
    assert old["assign"].path not in found.folders
    assert old["train"].path not in found.folders
    assert old["report"].path in found.folders
