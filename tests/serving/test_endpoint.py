"""Test the endpoint on a real Ray Serve: the batch table over HTTP, its metrics, other models under load, and too many requests."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import requests
from serving_kit import Load, ServeEndpoint, make_model, post, wait_until

from raycluster.pipeline.run import RunResult
from raycluster.serving.client import Client

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(300)]


def test_the_batch_table_over_http(endpoint: ServeEndpoint, run: RunResult, photos: Path) -> None:
    table = {row["image_id"]: row for row in pq.read_table(run.tables["assignments"]).to_pylist()}
    items = list(Client(endpoint.url, batch=10).assign_folder(photos))
    assert [item["id"] for item in items] == sorted(table)
    for item in items:
        row = table[item["id"]]
        assert (item["error"]["code"] if item["error"] else "ok") == row["status"]
        assert item["cluster"] == row["cluster"]
        if row["cluster"] is not None:
            assert item["confidence"] == pytest.approx(row["confidence"], abs=1e-4)
            assert item["margin"] == pytest.approx(row["margin"], abs=1e-4)


def test_another_model_takes_over_under_load(
    endpoint: ServeEndpoint, run: RunResult, files: list[Path], tmp_path: Path
) -> None:
    before = endpoint.model()
    other = make_model(run, tmp_path / "other", {"name": "tac", "trained": False})
    broken = tmp_path / "broken"
    shutil.copytree(run.model or "", broken)
    (broken / "heads.safetensors").write_bytes(b"not the heads")
    old = tmp_path / "old"
    shutil.copytree(run.model or "", old)
    (old / "model.json").write_text(json.dumps({"format": 0}))
    with Load(endpoint.url, files[:3]) as load:
        # The same replica loads the model, warms it up and swaps to it.
        endpoint.deploy([{"name": "Model", "user_config": {"run": other}}])
        wait_until(lambda: endpoint.model()["method"] == "tac")
        swapped = endpoint.model()
        # On a busy machine a request takes longer than all that follows.
        wait_until(lambda: swapped["model"]["version"] in load.versions())
        for place, reason in (
            (broken, "heads.safetensors"),
            (old, "format 0"),
            (tmp_path / "nowhere", "neither a run"),
        ):
            endpoint.deploy([{"name": "Model", "user_config": {"run": str(place)}}])
            refused = wait_until(
                lambda place=place: (r := endpoint.model()["refused"]) and r["run"] == str(place) and r
            )
            assert reason in refused["reason"]
            assert endpoint.model()["model"] == swapped["model"]
        endpoint.deploy([{"name": "Model", "user_config": {"run": run.output}}])
        wait_until(lambda: endpoint.model()["model"] == before["model"])
        assert endpoint.model()["refused"] is None
    assert load.failed == []
    assert load.versions() == [before["model"]["version"], swapped["model"]["version"]]
    assert load.replies[-1][1]["model"] == before["model"]
    for _, body in load.replies:
        names = [item["name"] for item in body["items"]]
        assert all(name.startswith("tac ") == (body["model"] == swapped["model"]) for name in names)


def test_a_model_that_cannot_be_read_for_a_while_takes_over_later(
    endpoint: ServeEndpoint, run: RunResult, tmp_path: Path
) -> None:
    """Nobody deploys again, and this endpoint does not watch its run folder: the replica itself tries again."""
    before = endpoint.model()
    other = make_model(run, tmp_path / "other", {"name": "tac", "trained": False})
    heads = tmp_path / "other" / "heads.safetensors"
    content = heads.read_bytes()
    heads.unlink()
    heads.mkdir()
    endpoint.deploy([{"name": "Model", "user_config": {"run": other}}])
    refused = wait_until(lambda: (r := endpoint.model()["refused"]) and r["run"] == other and r)
    assert "it is tried again in" in refused["reason"]
    assert endpoint.model()["model"] == before["model"]
    heads.rmdir()
    heads.write_bytes(content)
    wait_until(lambda: endpoint.model()["method"] == "tac")
    assert endpoint.model()["refused"] is None
    endpoint.deploy([{"name": "Model", "user_config": {"run": run.output}}])
    wait_until(lambda: endpoint.model()["model"] == before["model"])


@pytest.mark.torture
def test_other_arguments_under_load(endpoint: ServeEndpoint, run: RunResult, files: list[Path], tmp_path: Path) -> None:
    """`serve deploy` with another `run`: the builder refuses, or new replicas take over before the old ones stop."""
    before = endpoint.model()
    other = make_model(run, tmp_path / "other", {"name": "dxmc"})
    with Load(endpoint.url, files[:2]) as load:
        endpoint.deploy(run=str(tmp_path / "nowhere"))
        assert endpoint.wait_for_status() == "DEPLOY_FAILED"
        assert "neither a run folder" in endpoint.message()
        assert endpoint.model()["model"] == before["model"]
        endpoint.deploy(run=other)
        wait_until(lambda: endpoint.status() == "RUNNING" and endpoint.model()["method"] == "dxmc", 120)
        endpoint.deploy()
        wait_until(lambda: endpoint.status() == "RUNNING" and endpoint.model()["method"] == "kmeans", 120)
    assert load.failed == []
    assert len(load.versions()) == 2


def test_too_much_at_once(endpoint: ServeEndpoint, files: list[Path]) -> None:
    """If there are more clients than room, each gets an answer or 503 with Retry-After. Afterwards all is as before."""
    codes: list[tuple[int, str | None]] = []

    def ask() -> None:
        reply = post(endpoint.url, files[:16])
        codes.append((reply.status_code, reply.headers.get("retry-after")))

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {code for code, _ in codes} == {200, 503}
    assert all(int(after or 0) >= 1 for code, after in codes if code == 503)
    patient = Client(endpoint.url, batch=16, parallel=8)
    items = list(patient.assign(files * 8))
    assert len(items) == 8 * len(files)
    assert all(item["error"] is None for item in items)
    clusters = np.array([item["cluster"] for item in items]).reshape(8, -1)
    assert (clusters == clusters[0]).all()


def test_metrics_are_gathered(endpoint: ServeEndpoint, files: list[Path]) -> None:
    post(endpoint.url, files[:3])

    def counted() -> bool:
        text = requests.get(f"{endpoint.url}/metrics", timeout=20).text
        return all(
            f"ray_raycluster_{name}" in text for name in ("items_total", "request_seconds", "batch_rows", "model")
        )

    wait_until(counted, 45)
