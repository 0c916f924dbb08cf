from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycluster.config import EncoderConfig, ResourcesConfig, StorageConfig
from raycluster.demo.drawing import draw_dataset
from raycluster.encoder.clip import resolve_encoder
from raycluster.encoder.embed import EmbedJob, embedding
from raycluster.resources import resolve
from raycluster.row_blocks import find_blocks
from raycluster.storage import locate

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120), pytest.mark.usefixtures("local_ray")]


def test_without_gpus_the_encoders_read_and_decode_for_themselves(tmp_path: Path) -> None:
    pictures = draw_dataset(tmp_path, 40, ("house", "fish"), seed=1)
    uris = [str(picture) for picture in pictures]
    listed = locate(str(tmp_path / "manifest.parquet"))
    listed.write_table(
        pa.table({"row_id": range(40), "image_id": uris, "uri": uris, "size": [os.path.getsize(uri) for uri in uris]})
    )
    encoder = EncoderConfig(model="builtin")
    job = EmbedJob(resolve_encoder(encoder, use_gpu=False), encoder, StorageConfig(), locate(str(tmp_path / "parts")))
    found = resolve(ResourcesConfig(encoder_actors=1))
    # Whatever the cores of this machine: Ray Data makes one operator of stages whose demands are equal, or two of them.
    for cores in (2, 3, 4, 16):
        resources = replace(found, node_cpus=cores, cpus=float(cores), encoder_actors=cores)
        assert resources.decode_cpus == resources.encoder_actor["num_cpus"]
    blocks = find_blocks([listed], np.arange(40), 16, fair=1)
    done = embedding(job, blocks, found).materialize()
    assert "ReadBlockRows->MapBatches(decode_rows)->MapBatches(EncodeRows)" in done.stats()
    assert sum(row["rows"] for row in done.take_all()) == 40
    written = pq.read_table(tmp_path / "parts")
    assert sorted(written["row_id"].to_pylist()) == list(range(40))
    assert set(written["status"].to_pylist()) == {"ok"}
