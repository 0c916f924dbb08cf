from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycluster.cli import main
from raycluster.errors import ArtifactError, DataQualityError
from raycluster.run_folder import FOLDERS, Marker, RunFolder, check_failures, check_rows, now, part_name
from raycluster.storage import locate

FACTS: dict[str, dict[str, Any]] = {
    "manifest": {"lineage": "m", "next_row_id": 5},
    "embed": {"manifest": "m"},
    "train": {"constants": {}, "training": {}},
    "finetune": {"guard": {"agreement": 1.0}, "refused": ""},
}


def marker(stage: str = "train", fingerprint: str = "aa", **changes: Any) -> Marker:
    values = {"recipe": {"clusters": 3}, "rows": 5, "seconds": 1.0, "finished": now(), "path": f"model/{fingerprint}"}
    values["facts"] = FACTS.get(stage, {})
    return Marker.model_validate({"stage": stage, "fingerprint": fingerprint, **values, **changes})


def test_a_stage_without_a_marker_does_not_exist(tmp_path: Path) -> None:
    folder = RunFolder(locate(str(tmp_path)))
    (tmp_path / "model" / "aa").mkdir(parents=True)
    assert folder.marker("train") is None
    assert folder.find("train", "aa") is None


def test_an_earlier_configuration_is_found_again(tmp_path: Path) -> None:
    folder = RunFolder(locate(str(tmp_path)))
    folder.finish(marker(fingerprint="aa"))
    folder.finish(marker(fingerprint="bb", recipe={"clusters": 4}))
    current, earlier, same = (
        folder.marker("train"),
        folder.find("train", "aa"),
        folder.latest_with("train", {"clusters": 3}),
    )
    assert current is not None
    assert earlier is not None
    assert same is not None
    assert (current.fingerprint, earlier.fingerprint, same.fingerprint) == ("bb", "aa", "aa")


def test_the_model_is_the_tuned_one_where_it_comes_from_the_current_training(tmp_path: Path) -> None:
    folder = RunFolder(locate(str(tmp_path)))
    assert folder.model() is None
    folder.finish(marker(fingerprint="aa"))
    folder.finish(marker("finetune", "cc", recipe={"train": "aa"}))
    assert (folder.model() or marker()).fingerprint == "cc"
    folder.finish(marker(fingerprint="bb"))
    assert (folder.model() or marker()).fingerprint == "bb"


def test_a_stage_that_is_not_planned_any_more_is_not_current(tmp_path: Path) -> None:
    folder = RunFolder(locate(str(tmp_path)))
    assert folder.plan() == list(FOLDERS)
    folder.finish(marker(fingerprint="aa"))
    folder.finish(marker("finetune", "cc", recipe={"train": "aa"}))
    folder.set_plan(["train"])
    assert folder.plan() == ["train"]
    assert folder.marker("finetune") is None
    assert folder.find("finetune", "cc") is not None
    assert (folder.model() or marker("x")).fingerprint == "aa"


def test_a_damaged_marker_names_its_file(tmp_path: Path) -> None:
    folder = RunFolder(locate(str(tmp_path)))
    folder.finish(marker())
    (tmp_path / "_stages" / "train.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"train\.json.*delete it"):
        folder.marker("train")


def broken(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The record without each of its keys, and with an odd value in its place."""
    for key in record:
        yield f"without {key}", {other: value for other, value in record.items() if other != key}
        yield f"odd {key}", {**record, key: None}


@pytest.mark.parametrize("stage", list(FACTS))
def test_a_marker_that_lacks_something_is_an_error_in_words(tmp_path: Path, stage: str) -> None:
    folder, file = RunFolder(locate(str(tmp_path))), tmp_path / "_stages" / f"{stage}.json"
    folder.finish(marker(stage))
    good = json.loads(file.read_text())
    cases = [*broken(good), *((what, {**good, "facts": facts}) for what, facts in broken(FACTS[stage]))]
    for what, record in [*cases, ("a list", []), ("a number", 5)]:
        if what == "without statuses":  # none is the same as an empty one
            continue
        file.write_text(json.dumps(record))
        with pytest.raises(ArtifactError, match=rf"_stages/{stage}\.json is damaged .*; restore it, or delete it"):
            folder.marker(stage)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"stages": "train"}', '{"stages": [1]}', "null", '"\ud800'])
def test_a_damaged_plan_is_an_error_in_words(tmp_path: Path, content: str) -> None:
    folder = RunFolder(locate(str(tmp_path)))
    folder.set_plan(["train"])
    (tmp_path / "_stages" / "plan.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ArtifactError, match=r"plan\.json is damaged .*; restore it, or delete it"):
        folder.plan()


def test_damaged_figures_are_an_error_in_words(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(locate(str(tmp_path)))
    folder.finish(marker("evaluate", path="evaluation/aa"))
    (tmp_path / "evaluation" / "aa").mkdir(parents=True)
    (tmp_path / "evaluation" / "aa" / "metrics.json").write_text('{"acc": 0.')
    assert main(["status", str(tmp_path)]) == 4
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    assert "metrics.json is damaged" in json.loads(said.out)["error"]


def test_a_marker_whose_table_is_gone_is_an_error(tmp_path: Path) -> None:
    folder = RunFolder(locate(str(tmp_path)))
    with pytest.raises(ArtifactError, match="promises 5 rows"):
        folder.parts(marker("assign", path="assignments/aa"))


def test_count_gate_passes_complete_tables_in_any_order() -> None:
    check_rows("t", np.array([3, 1, 2]), np.array([1, 2, 3]), exact=True)
    check_rows("t", np.array([9, 3, 1, 2]), np.array([1, 2, 3]), exact=False)


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ([1, 3], "1 rows missing .row_id 2."),
        ([1, 2, 2, 3], "1 rows twice .row_id 2."),
        ([1, 2, 3, 9], "1 rows not in the manifest"),
    ],
)
def test_count_gate_names_what_is_wrong(found: list[int], problem: str) -> None:
    with pytest.raises(DataQualityError, match=problem):
        check_rows("t", np.array(found), np.array([1, 2, 3]), exact=True)


def test_failure_gate_shows_the_histogram_and_examples() -> None:
    statuses = {"ok": 90, "missing": 8, "empty": 2}
    check_failures(statuses, {}, allowed=0.10)
    with pytest.raises(DataQualityError) as caught:
        check_failures(statuses, {"missing": [("s3://b/a.jpg", "no such key")]}, allowed=0.09)
    assert "10 of 100 images (10.0%)" in str(caught.value)
    assert "s3://b/a.jpg: no such key" in str(caught.value)


def test_failure_gate_before_all_were_tried_counts_against_all() -> None:
    check_failures({"ok": 5, "missing": 5}, {}, allowed=0.1, total=100)
    with pytest.raises(
        DataQualityError, match=r"11 of 100 images \(11.0%\) could not be read, and 84 were not tried any more"
    ):
        check_failures({"ok": 5, "missing": 11}, {}, allowed=0.1, total=100)


def test_drafts_are_removed_and_nothing_else(tmp_path: Path) -> None:
    folder = RunFolder(locate(str(tmp_path)))
    kept = [tmp_path / "shards" / "a" / "part-1.parquet", tmp_path / "notes.tmp", tmp_path / "training" / "x" / "y.tmp"]
    drafts = [
        tmp_path / "shards" / "a" / ".part-2.parquet.7.tmp",
        tmp_path / "_stages" / "history" / ".embed.json.7.tmp",
    ]
    for file in (*kept, *drafts):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    folder.remove_drafts()
    assert all(file.exists() for file in kept)
    assert not any(file.exists() for file in drafts)


def test_failure_gate_never_passes_a_run_without_a_single_image() -> None:
    with pytest.raises(DataQualityError):
        check_failures({"missing": 3}, {}, allowed=1.0)


def test_part_names_sort_like_their_rows() -> None:
    assert part_name(np.array([12, 7, 9])) == "part-000000000007.parquet"
    assert part_name(np.array([99])) < part_name(np.array([100]))
