"""Test the markers of a run folder: which stages they show as finished, and that damaged ones give a clear error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raycluster.cli import main
from raycluster.errors import ArtifactError
from raycluster.pipeline.stages import FACTS as FACTS_OF
from raycluster.storage.location import locate
from raycluster.tables.markers import Marker, RunFolder, now

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
    assert folder.plan().stages == []
    folder.finish(marker(fingerprint="aa"))
    folder.finish(marker("finetune", "cc", recipe={"train": "aa"}))
    folder.set_plan({"train": "model/aa"})
    assert folder.plan().stages == ["train"]
    assert folder.plan().paths == {"train": "model/aa"}
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
    """For each key of the record, a copy without the key and a copy with null in its place."""
    for key in record:
        yield f"without {key}", {other: value for other, value in record.items() if other != key}
        yield f"odd {key}", {**record, key: None}


@pytest.mark.parametrize("stage", list(FACTS))
def test_a_marker_that_lacks_something_is_an_error_in_words(tmp_path: Path, stage: str) -> None:
    folder, file = RunFolder(locate(str(tmp_path)), FACTS_OF), tmp_path / "_stages" / f"{stage}.json"
    folder.finish(marker(stage))
    good = json.loads(file.read_text())
    cases = [*broken(good), *((what, {**good, "facts": changed}) for what, changed in broken(FACTS[stage]))]
    for what, record in [*cases, ("a list", []), ("a number", 5)]:
        if what in ("without statuses", "without refused"):  # a missing one counts as empty
            continue
        file.write_text(json.dumps(record))
        with pytest.raises(ArtifactError, match=rf"_stages/{stage}\.json is damaged .*; restore it, or delete it"):
            folder.marker(stage)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"stages": "train"}', '{"stages": [1]}', '{"stages": [], "paths": [1]}', "null", '"\ud800'],
)
def test_a_damaged_plan_is_an_error_in_words(tmp_path: Path, content: str) -> None:
    folder = RunFolder(locate(str(tmp_path)))
    folder.set_plan({"train": "model/aa"})
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
    with pytest.raises(ArtifactError, match="records 5 rows"):
        folder.part_files(marker("assign", path="assignments/aa"))


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
    folder.remove_drafts(["shards"])
    assert all(file.exists() for file in kept)
    assert not any(file.exists() for file in drafts)
