"""Test that batch equals serving: for every method, the batch stages and the API give the same results for the same pictures.

The usual tests call the functions of the stages and have untrained heads. `make torture` trains the heads, and compares the tables on the
disk with Ray Serve.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn_run import configuration
from safetensors.torch import save
from serving_kit import LocalEndpoint, ServeEndpoint, make_model, post

import raycluster
from raycluster.config import EncoderConfig, StorageConfig
from raycluster.encoder.embed import EmbedJob, EncodeRows, decode_rows
from raycluster.methods import registry
from raycluster.methods.base import TrainedMethod
from raycluster.model.files import load_model
from raycluster.model.model import ENCODER_FILE, Model
from raycluster.pipeline.run import RunResult
from raycluster.results.assign import assign_rows
from raycluster.serving.client import Client
from raycluster.serving.live_model import LiveModel
from raycluster.storage.location import locate

METHODS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in registry.method_names()},
    "tac, not trained": {"name": "tac", "trained": False},
}

TUNED = [name for name in registry.method_names() if registry.method_class(name).image_head]


def batch_table(model: Model, files: list[Path]) -> pa.Table:
    """The table that `embed` and `assign` write for these files."""
    ids = list(range(len(files)))
    uris = [str(path) for path in files]
    manifest = pa.table({"row_id": ids, "image_id": uris, "uri": uris, "size": [path.stat().st_size for path in files]})
    job = EmbedJob(model.spec, EncoderConfig(model="builtin"), StorageConfig(), locate("/nowhere"))
    # These batches differ from those of a request, because the result of a row must not depend on its neighbors.
    encode, decoded = EncodeRows(job, threads=1), decode_rows(manifest, job)
    embeddings = pa.concat_tables(encode(decoded.slice(start, 5)) for start in range(0, len(files), 5))
    return assign_rows(model.method, embeddings, manifest, model.novelty)


def check_equal(model: str, files: list[Path]) -> np.ndarray:
    """Check that the API answers as the batch table says; return the confidences."""
    expected = batch_table(load_model(model), files)
    with LocalEndpoint(LiveModel(model, StorageConfig(), "cpu", 32)) as endpoint:
        reply = post(endpoint.url, files)
    assert reply.status_code == 200, reply.text
    return check_items(reply.json()["items"], expected)


def check_items(items: list[dict[str, Any]], expected: pa.Table) -> np.ndarray:
    """Check that the items of a reply equal the rows of a table; return the confidences."""
    assert [item["error"]["code"] if item["error"] else "ok" for item in items] == expected["status"].to_pylist()
    # The tables of a run itself do not say which rows are outliers.
    for key in {"cluster", "outlier"} & set(expected.column_names):
        assert [item[key] for item in items] == expected[key].to_pylist()
    for key in ("confidence", "margin"):
        found = np.array([item[key] for item in items], float)
        np.testing.assert_allclose(found, expected[key].to_numpy().astype(float), atol=1e-4)
    assert len({item["confidence"] for item in items}) > 2, (
        "a model that says the same of all pictures would equal anything"
    )
    return np.array([item["confidence"] for item in items], float)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_every_method(run: RunResult, files: list[Path], photos: Path, tmp_path: Path, method: str) -> None:
    check_equal(make_model(run, tmp_path / "model", METHODS[method]), [*files, photos / "text.jpg"])


def test_a_fine_tuned_encoder(run: RunResult, files: list[Path], tmp_path: Path) -> None:
    plain = load_model(run.output)
    state = {key: value.clone() for key, value in plain.encoder.model.visual.state_dict().items()}
    for key, value in state.items():
        if value.is_floating_point() and value.ndim > 1:
            state[key] = (value * 1.05).contiguous()
    model = make_model(run, tmp_path / "model", {"name": "seic"}, {ENCODER_FILE: save(state)})
    tuned = check_equal(model, files)
    untuned = batch_table(replace(load_model(model), record={**load_model(model).record, "sha256": {}}), files)
    assert np.abs(tuned - untuned["confidence"].to_numpy()).max() > 1e-4


@pytest.mark.torture
@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("method", "tuned"), [*((name, False) for name in METHODS), *((name, True) for name in TUNED)])
def test_a_whole_run_and_its_endpoint(photos: Path, tmp_path: Path, method: str, tuned: bool, local_ray: None) -> None:
    trained = (
        issubclass(registry.method_class(METHODS[method]["name"]), TrainedMethod) and method in registry.method_names()
    )
    given: dict[str, Any] = {"method": {**METHODS[method], **({"epochs": 3} if trained else {})}}
    if tuned:
        given["finetune"] = {"enabled": True, "rank": 4, "batch_size": 16, "epochs": 2}
    result = raycluster.run(configuration(photos, tmp_path / "out", **given))
    assert not tuned or "reembed" in result.stages, result.warnings
    expected = pq.read_table(result.tables["assignments"])
    with ServeEndpoint({"run": result.output}) as endpoint:
        items = list(Client(endpoint.url, batch=16).assign(expected["uri"].to_pylist()))
    check_items(items, expected)
