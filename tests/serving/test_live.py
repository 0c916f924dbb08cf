"""How one model takes the place of another, or is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from serving_kit import make_model

from raycluster.config import StorageConfig
from raycluster.errors import RayclusterError
from raycluster.pipeline import RunResult
from raycluster.serving import live as module
from raycluster.serving.live import Answer, Job, LiveModel, Stale

PROVIDED = {"config": None, "precision": None, "fingerprint": "provided"}


def live_model(place: str) -> LiveModel:
    return LiveModel(place, StorageConfig(), "cpu", 8)


def job(model: LiveModel, n: int = 3, top_k: int = 2) -> Job:
    rows = np.random.default_rng(n).integers(0, 255, (n, *model.card.spec.pixel_shape), np.uint8)  # type: ignore[union-attr]
    return Job(rows, model.card.pixels, top_k)


def test_what_cannot_be_used_is_refused_with_its_reason(run: RunResult, tmp_path: Path) -> None:
    live = live_model(run.output)
    before, answer = live.card, live.answer([job(live)])[0]

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
        "nan": "does not give 4 probabilities",
        "provided": "trained on ready-made embeddings",
    }
    for name, reason in reasons.items():
        assert not live.offer(str(tmp_path / name))
        assert live.card.refused
        assert reason in live.card.refused["reason"]
        assert live.card.version == before.version
        if name != "provided":
            with pytest.raises(RayclusterError):
                live_model(str(tmp_path / name))
    after = live.answer([job(live)])[0]
    assert isinstance(after, Answer)
    assert isinstance(answer, Answer)
    assert (after.confidence == answer.confidence).all()
    assert live.offer(run.output)
    assert live.card.refused is None


def test_embeddings_of_another_size_are_another_endpoint(run: RunResult, tmp_path: Path) -> None:
    live = live_model(make_model(run, tmp_path / "provided", {"name": "kmeans"}, encoder=PROVIDED))
    assert live.card.spec is None
    assert live.offer(make_model(run, tmp_path / "again", {"name": "seic"}, encoder=PROVIDED))
    live._current = module.replace(live._current, card=module.replace(live.card, dim=7))
    assert not live.offer(str(tmp_path / "provided"))
    assert "takes embeddings of 96 numbers" in (live.card.refused or {})["reason"]


def test_pictures_on_their_way_are_answered_by_the_model_before(
    run: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = live_model(run.output)
    early, version = job(live), live.card.version
    monkeypatch.setattr(module, "preprocessing", lambda spec: "another size")
    assert live.offer(make_model(run, tmp_path / "other", {"name": "seic"}))
    old, new = live.answer([early, job(live)])
    assert isinstance(old, Answer)
    assert isinstance(new, Answer)
    assert (old.version, new.version) == (version, live.card.version)
    monkeypatch.setattr(module, "GRACE_S", 0.0)
    stale, new = live.answer([early, job(live)])
    assert isinstance(stale, Stale)
    assert stale.card == live.card
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
    refused = live.card.refused
    assert refused
    assert not live.look()
    assert live.card.refused == refused
    (output / "_stages/train.json").unlink()
    assert not live.look()  # a run in the making
    (output / "model/next/heads.safetensors").write_bytes(heads)
    (output / "_stages/train.json").write_text(json.dumps({**marker, "path": "model/next"}))
    assert live.offer(str(output))
    assert live.card.method == "seic"
    # Its clusters are not described yet: those of the old model are not shown for it.
    assert not live.gallery.described
    assert live.gallery.clusters[0]["exemplars"] == []
