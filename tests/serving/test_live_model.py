"""Test how one model replaces another, or is refused."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flaky_server import FlakyServer
from serving_kit import make_model

from raycluster.config import StorageConfig
from raycluster.errors import RayclusterError
from raycluster.pipeline.run import RunResult
from raycluster.serving import live_model as module
from raycluster.serving import waiting
from raycluster.serving.live_model import Answer, Job, LiveModel, Stale
from raycluster.storage.location import locate

PROVIDED = {"config": None, "precision": None, "fingerprint": "provided"}


def live_model(place: str) -> LiveModel:
    return LiveModel(place, StorageConfig(), "cpu", 8)


def job(model: LiveModel, n: int = 3, top_k: int = 2) -> Job:
    rows = np.random.default_rng(n).integers(0, 255, (n, *model.info.spec.pixel_shape), np.uint8)  # type: ignore[union-attr]
    return Job(rows, model.info.pixels, top_k)


def test_what_cannot_be_used_is_refused_with_its_reason(run: RunResult, tmp_path: Path) -> None:
    live = live_model(run.output)
    before, answer = live.info, live.answer([job(live)])[0]

    def copy(name: str) -> Path:
        shutil.copytree(run.model or "", tmp_path / name)
        return tmp_path / name

    (copy("no heads") / "heads.safetensors").unlink()
    (copy("other names") / "clusters.json").write_text("[]")
    (copy("no json") / "model.json").write_text("{")
    record = json.loads((copy("foreign") / "model.json").read_text())
    record["encoder"]["fingerprint"] = "another"
    (tmp_path / "foreign/model.json").write_text(json.dumps(record))
    del record["method"]
    (copy("incomplete") / "model.json").write_text(json.dumps(record))
    make_model(run, tmp_path / "nan", {"name": "kmeans"}, spoil=True)
    make_model(run, tmp_path / "provided", {"name": "kmeans"}, encoder=PROVIDED)
    reasons = {
        "nowhere": "neither a run folder",
        "no heads": "heads.safetensors is missing",
        "other names": "sha256 differs",
        "no json": "model.json is damaged",
        "foreign": "are not those the model was trained with",
        "incomplete": "model.json is damaged (its keys: `method` is missing)",
        "nan": "does not give 4 finite probabilities",
        "provided": "trained on ready-made embeddings",
    }
    for name, reason in reasons.items():
        assert not live.offer(str(tmp_path / name))
        assert live.info.refused
        assert reason in live.info.refused["reason"]
        assert live.info.version == before.version
        if name != "provided":
            with pytest.raises(RayclusterError):
                live_model(str(tmp_path / name))
    after = live.answer([job(live)])[0]
    assert isinstance(after, Answer)
    assert isinstance(answer, Answer)
    assert (after.confidence == answer.confidence).all()
    assert live.offer(run.output)
    assert live.info.refused is None


def test_embeddings_of_another_size_are_another_endpoint(run: RunResult, tmp_path: Path) -> None:
    live = live_model(make_model(run, tmp_path / "provided", {"name": "kmeans"}, encoder=PROVIDED))
    assert live.info.spec is None
    assert live.offer(make_model(run, tmp_path / "again", {"name": "seic"}, encoder=PROVIDED))
    live._current = module.replace(live._current, info=module.replace(live.info, dim=7))
    assert not live.offer(str(tmp_path / "provided"))
    assert "takes embeddings of 96 numbers" in (live.info.refused or {})["reason"]


def test_pictures_on_their_way_are_answered_by_the_model_before(
    run: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = live_model(run.output)
    early, version = job(live), live.info.version
    monkeypatch.setattr(module, "preprocessing", lambda spec: "another size")
    assert live.offer(make_model(run, tmp_path / "other", {"name": "seic"}))
    old, new = live.answer([early, job(live)])
    assert isinstance(old, Answer)
    assert isinstance(new, Answer)
    assert (old.version, new.version) == (version, live.info.version)
    monkeypatch.setattr(module, "GRACE_S", 0.0)
    stale, new = live.answer([early, job(live)])
    assert isinstance(stale, Stale)
    assert stale.info == live.info
    assert isinstance(new, Answer)


def test_requests_of_a_batch_get_their_own_rows(run: RunResult) -> None:
    live = live_model(run.output)
    jobs = [job(live, 1, 1), job(live, 9, 4), Job(np.ones((2, 96), np.float16), None, 2), job(live, 2, 3)]
    together = live.answer(jobs)
    for each, answer in zip(jobs, together, strict=True):
        alone = live.answer([each])[0]
        assert isinstance(alone, Answer)
        assert isinstance(answer, Answer)
        assert answer.top.shape == (len(each), each.top_k)
        np.testing.assert_array_equal(answer.cluster, alone.cluster)
        np.testing.assert_allclose(answer.top_confidence, alone.top_confidence, atol=1e-4)
        assert set(answer.names) >= set(answer.top.ravel().tolist()) | set(answer.cluster.tolist())


def test_a_new_model_of_the_run_is_seen_and_what_was_refused_is_not_tried_again(run: RunResult, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(run.output, output)
    live = live_model(str(output))
    assert live.gallery.described
    assert not live.look()
    marker = json.loads((output / "_stages/train.json").read_text())
    make_model(run, output / "model/next", {"name": "seic"})
    heads = (output / "model/next/heads.safetensors").read_bytes()
    (output / "model/next/heads.safetensors").write_bytes(b"")
    (output / "_stages/train.json").write_text(json.dumps({**marker, "path": "model/next"}))
    assert not live.look()
    refused = live.info.refused
    assert refused
    assert not live.look()
    assert live.info.refused == refused
    (output / "_stages/train.json").unlink()
    assert not live.look()  # a run that has no model yet
    (output / "model/next/heads.safetensors").write_bytes(heads)
    (output / "_stages/train.json").write_text(json.dumps({**marker, "path": "model/next"}))
    # What was refused is looked at again, since its files have changed.
    assert live.look()
    assert live.info.method == "seic"
    assert live.info.refused is None
    # Its clusters are not described yet, and those of the old model must not be shown for it.
    assert not live.gallery.described
    assert live.gallery.clusters[0]["exemplars"] == []


def unreadable(file: Path) -> Callable[[], None]:
    """Replace a file by a folder, so that nobody can read it; return a function that undoes this."""
    content = file.read_bytes()
    file.unlink()
    file.mkdir()

    def undo() -> None:
        file.rmdir()
        file.write_bytes(content)

    return undo


def look_when_due(live: LiveModel) -> bool:
    """Sleep until the next look is due, as the replica does, and look."""
    pause = live.next_look(None)
    assert pause is not None
    time.sleep(pause)
    return live.look()


def test_what_may_pass_is_tried_again_with_growing_pauses(
    run: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "RETRY_S", 0.05)
    monkeypatch.setattr(waiting, "RETRY_MOST_S", 0.15)
    live = live_model(run.output)
    version = live.info.version
    assert live.next_look(None) is None
    assert live.next_look(10.0) == 10.0
    other = make_model(run, tmp_path / "other", {"name": "seic"})
    undo = unreadable(tmp_path / "other/heads.safetensors")
    assert not live.offer(other)
    pauses = []
    for _ in range(3):
        assert live._waiting is not None
        pauses.append(live._waiting.pause)
        assert "it is tried again in" in (live.info.refused or {})["reason"]
        assert not look_when_due(live)
        assert live.info.version == version
    assert pauses == [0.05, 0.1, 0.15]
    undo()
    assert look_when_due(live)
    assert live.info.method == "seic"
    assert live.info.refused is None
    assert live.next_look(None) is None


def test_a_pause_is_kept_but_not_for_another_model(run: RunResult, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(run.output, output)
    live = live_model(str(output))
    marker = json.loads((output / "_stages/train.json").read_text())
    make_model(run, output / "model/next", {"name": "seic"})
    (output / "_stages/train.json").write_text(json.dumps({**marker, "path": "model/next"}))
    undo = unreadable(output / "model/next/heads.safetensors")
    assert not live.look()
    refused = live.info.refused
    assert live.next_look(10.0) <= 1.0  # type: ignore[operator]
    assert not live.look()
    assert live.info.refused == refused  # the pause was not over, so it did not try again
    make_model(run, output / "model/third", {"name": "tac", "trained": False})
    (output / "_stages/train.json").write_text(json.dumps({**marker, "path": "model/third"}))
    assert live.look()
    assert live.info.method == "tac"
    # The run goes back to the model in use before the pause of another model is over, so nothing waits any more.
    for name, waits in (("next", True), ("third", False)):
        (output / "_stages/train.json").write_text(json.dumps({**marker, "path": f"model/{name}"}))
        assert not live.look()
        assert (live.next_look(None) is not None) is waits
    undo()


def test_a_model_whose_files_come_late_is_waited_for(
    run: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The marker is there before the folder that it names, and the folder before all of its files."""
    monkeypatch.setattr(waiting, "RETRY_S", 0.05)
    output = tmp_path / "out"
    shutil.copytree(run.output, output)
    live = live_model(str(output))
    marker = json.loads((output / "_stages/train.json").read_text())
    (output / "_stages/train.json").write_text(json.dumps({**marker, "path": "model/next"}))
    whole = Path(make_model(run, tmp_path / "whole", {"name": "seic"}))
    assert not live.look()
    assert "it is tried again" in (live.info.refused or {})["reason"]
    names = sorted(file.name for file in whole.iterdir())
    (output / "model/next").mkdir()
    for name in names[:-1]:
        shutil.copy(whole / name, output / "model/next")
        assert not live.look()
        assert "it is tried again" in (live.info.refused or {})["reason"]
    shutil.copy(whole / names[-1], output / "model/next")
    assert live.look()
    assert live.info.method == "seic"


def test_a_storage_that_answers_503_for_a_while(
    run: RunResult, tmp_path: Path, s3: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "RETRY_S", 0.05)
    monkeypatch.setattr("raycluster.storage.s3.ATTEMPTS", 1)  # else the client itself waits half a minute
    other = Path(make_model(run, tmp_path / "other", {"name": "seic"}))
    with FlakyServer(str(s3.endpoint_url)) as flaky:
        storage = StorageConfig(endpoint_url=flaky.url, region="us-east-1")
        root = locate(f"s3://raycluster-test/swap-{time.time_ns()}", storage)
        for folder, name in ((Path(run.model or ""), "first"), (other, "second")):
            for file in folder.iterdir():
                (root / name / file.name).write_bytes(file.read_bytes())
        live = LiveModel(f"{root.uri}/first", storage, "cpu", 8)
        flaky.fails = lambda path: "second" in path
        assert not live.offer(f"{root.uri}/second")
        assert not look_when_due(live)
        flaky.fails = lambda path: "second/heads" in path
        assert not look_when_due(live)
        assert "it is tried again" in (live.info.refused or {})["reason"]
        assert flaky.refused >= 3
        flaky.fails = lambda path: False
        assert look_when_due(live)
    assert live.info.method == "seic"


def test_a_look_never_raises(run: RunResult, tmp_path: Path) -> None:
    """An error of the look itself would end the replica's watch for good."""
    output = tmp_path / "out"
    shutil.copytree(run.output, output)
    described = output / "_stages/describe.json"
    content = described.read_bytes()
    described.unlink()
    live = live_model(str(output))
    assert not live.gallery.described
    described.mkdir()
    assert not live.look()
    described.rmdir()
    described.write_bytes(content)
    assert not live.look()
    assert live.gallery.described
