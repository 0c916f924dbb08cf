"""Test the embed stage: how its tasks and actors read, decode and encode, and that a node which differs does nothing."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ray_workers import wait_for_free_cores

from raycluster.compute.errors import with_plain_errors
from raycluster.compute.node_checks import Common, Place
from raycluster.compute.resources import resolve
from raycluster.config import EncoderConfig, ResourcesConfig, StorageConfig
from raycluster.demo.drawing import draw_dataset
from raycluster.encoder.clip import resolve_encoder
from raycluster.encoder.embed import EmbedJob, EncodeRows, decode_rows, embed, embedding, rounds
from raycluster.errors import ConfigError
from raycluster.storage.location import Location, locate, read_table
from raycluster.tables.blocks import find_blocks
from raycluster.tables.rows import vectors

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120), pytest.mark.usefixtures("local_ray")]

N = 40


@pytest.fixture
def job(tmp_path: Path) -> EmbedJob:
    encoder = EncoderConfig(model="builtin")
    return EmbedJob(resolve_encoder(encoder, use_gpu=False), encoder, StorageConfig(), locate(str(tmp_path / "parts")))


@pytest.fixture
def listed(tmp_path: Path) -> Location:
    """A manifest of pictures."""
    uris = [str(picture) for picture in draw_dataset(tmp_path, N, ("house", "fish"), seed=1)]
    manifest = locate(str(tmp_path / "manifest.parquet"))
    manifest.write_table(
        pa.table({"row_id": range(N), "image_id": uris, "uri": uris, "size": [os.path.getsize(uri) for uri in uris]})
    )
    return manifest


def test_without_gpus_the_encoders_read_and_decode_for_themselves(job: EmbedJob, listed: Location) -> None:
    found = resolve(ResourcesConfig(encoder_actors=1))
    # Ray Data joins steps into one operator only if their demands are equal. They must be equal for any number of cores.
    for cores in (2, 3, 4, 16):
        resources = replace(found, node_cpus=cores, cpus=float(cores), encoder_actors=cores)
        assert resources.decode_cpus == resources.encoder_actor["num_cpus"]
    done = embedding(job, find_blocks([listed], np.arange(N), 16, fair=1), found).materialize()
    assert "ReadBlockRows->MapBatches(decode_rows)->MapBatches(EncodeRows)" in done.stats()
    assert sum(row["rows"] for row in done.take_all()) == N
    written = pq.read_table(job.folder.path)
    assert sorted(written["row_id"].to_pylist()) == list(range(N))
    assert set(written["status"].to_pylist()) == {"ok"}
    uris = {row["row_id"]: row["uri"] for row in pq.read_table(listed.path).to_pylist()}
    for row in written.slice(0, 5).to_pylist():
        assert row["content"] == hashlib.blake2b(Path(uris[row["row_id"]]).read_bytes(), digest_size=16).digest()


@pytest.mark.parametrize(
    ("differs", "means"),
    [
        (
            {"versions": (("torch", "1.0"),)},
            r"^ray: torch is .* on node .* and 1\.0 here; give all nodes the same container image",
        ),
        pytest.param(
            {"places": (Place("images", "/nowhere", "/nowhere", "a"),)},
            r"^images: /nowhere is on this machine's disk",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_node_that_has_not_what_it_must_have_does_nothing(
    differs: dict[str, Any], means: str, job: EmbedJob, listed: Location
) -> None:
    here = resolve(ResourcesConfig(encoder_actors=1))
    driven_elsewhere = replace(here, common=Common("another node", **differs))
    with pytest.raises(ConfigError, match=means) as kept:
        with_plain_errors(lambda: list(embed(job, [listed], np.arange(N), driven_elsewhere)))
    assert not job.folder.list()
    # An error that a notebook keeps must not keep an actor alive: the next run would wait for its cores.
    wait_for_free_cores()
    assert kept.value.__context__ is None


def test_many_rows_are_embedded_in_rounds_of_some_thousand_blocks() -> None:
    resources = resolve(ResourcesConfig(encoder_actors=1))
    assert [len(some) for some in rounds(np.arange(300_000), resources)] == [256_000, 44_000]
    assert [len(some) for some in rounds(np.arange(100), resources)] == [100]
    assert rounds(np.empty(0, np.int64), resources) == []
    gpus = replace(resources, gpus=8.0, encoder_actors=8)
    assert [len(some) for some in rounds(np.arange(10_000_000), gpus)] == [4_096_000, 4_096_000, 1_808_000]


def test_an_encoder_actor_compiles_when_it_is_asked_to(
    job: EmbedJob, listed: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve(ResourcesConfig(compile_encoder=True)).compile_encoder
    assert not resolve(ResourcesConfig()).compile_encoder
    # The model is traced but not compiled, because that takes a C++ compiler minutes.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    decoded = decode_rows(read_table([listed]).slice(0, 6), job)
    plain, compiled = (EncodeRows(job, threads=1, compile=compile)(decoded) for compile in (False, True))
    assert compiled.drop_columns(["embedding"]).equals(plain.drop_columns(["embedding"]))
    found, expected = (vectors(table).astype(np.float32) for table in (compiled, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=2e-3)
