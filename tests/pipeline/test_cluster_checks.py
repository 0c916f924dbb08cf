"""Test which files of a run are compared between nodes: one or two of every source, whatever its kind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_kit import small_model
from ray_nodes import ROOT, cluster_of, environment
from safetensors.torch import save

from raycluster.config import EncoderConfig
from raycluster.demo.drawing import draw_dataset
from raycluster.encoder.clip import ClipEncoder, resolve_encoder


def write_tar(file: Path, pictures: list[Path]) -> None:
    with tarfile.open(file, "w") as tar:
        for picture in pictures:
            tar.add(picture, f"{picture.parent.name}-{picture.name}")


def write_table(file: Path, pictures: list[Path]) -> None:
    names = [str(picture) for picture in pictures]
    pq.write_table(pa.table({"image": [picture.read_bytes() for picture in pictures], "image_id": names}), file)


ALL = """
import json, sys
from raycluster.cli import main
print(json.dumps([main(words) for words in json.loads(sys.argv[1])]))
"""
"""Several commands in one process, which joins the cluster once. It prints the result of each, and their exit codes."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_kind_of_source_is_compared(tmp_path: Path) -> None:
    """Tars, tables, lists, one source among several, and new pictures for a model are compared. Files that no other node reads are not."""
    hidden, seen, other = tmp_path / "hidden", tmp_path / "seen", tmp_path / "other"
    for place in (hidden, seen, other):
        pictures = draw_dataset(place / "photos", 12, ("fish", "car"), seed=3)
        write_tar(place / "a.tar", pictures[:6] if place == other else pictures)
        write_table(place / "a.parquet", pictures[:6] if place == other else pictures)
    shutil.copytree(seen / "photos", seen / "more")
    # These pictures are named in a list that lies in a bucket or, as here, on a disk that all nodes see.
    uris = [str(path) for path in sorted((hidden / "photos").rglob("*.jpg"))]
    pq.write_table(pa.table({"uri": uris}), seen / "list.parquet")
    vectors = np.eye(2, 8)[np.arange(12) % 2] + 0.1 * np.random.default_rng(0).normal(size=(12, 8))
    for place in (hidden, seen):
        pq.write_table(pa.table({"image_id": uris, "uri": uris, "embedding": list(vectors)}), place / "vectors.parquet")
    shutil.copytree(ROOT / "raycluster" / "demo" / "clip", seen / "clip")
    config = EncoderConfig(model=f"local-dir:{seen / 'clip'}", precision="fp32")
    spec = resolve_encoder(config, use_gpu=False)
    encoder = {"config": config.model_dump(mode="json"), "precision": "fp32", "fingerprint": spec.fingerprint}
    tower = {
        name: tensor.contiguous() for name, tensor in ClipEncoder.load(spec, "cpu").model.visual.state_dict().items()
    }
    for place in (hidden, seen):
        small_model(place / "model", encoder, {"encoder.safetensors": save(tower)}, finetune={})

    def words(images: object, embeddings: bool = False, model: Path | None = None) -> tuple[str, ...]:
        """A command with these sources, whose output lies where all nodes see it."""
        file = tmp_path / "seen" / f"{len(list(seen.iterdir()))}.yaml"
        given: dict[str, Any] = {"embeddings" if embeddings else "images": images, "output": f"{file}.out"}
        if model is not None:
            given["model"] = str(model)
        else:
            given |= {"clusters": 2, "method": {"name": "kmeans"}, "vocabulary": {"cache": str(tmp_path / "cache")}}
            given |= {} if embeddings else {"encoder": {"model": "builtin"}}
        file.write_text(json.dumps(given))
        return ("run" if model is None else "assign", "--config", str(file))

    photos = str(seen / "photos")
    refused = {
        f"images: {hidden}/a.tar": words(str(hidden / "*.tar")),
        f"images: {hidden}/a.parquet": words(str(hidden / "a.parquet")),
        f"images: {hidden}/photos/": words(str(seen / "list.parquet")),
        f"images: {hidden}/a.tar is on": words([photos, f"{hidden}/a.tar", str(seen / "a.parquet")]),
        f"model: {hidden}/model/encoder.safetensors": words(photos, model=hidden / "model"),
        f"images: {hidden}/a.tar is": words(f"{hidden}/a.tar", model=seen / "model"),
        # The other node has a file of that name, but its content differs.
        f"images: {seen}/a.tar": words(f"{seen}/a.tar"),
        f"images: {seen}/a.parquet": words(f"{seen}/a.parquet", model=seen / "model"),
        f"embeddings: {hidden}/vectors.parquet": words(str(hidden / "vectors.parquet"), embeddings=True),
    }
    taken = [words(photos, model=seen / "model"), words(str(seen / "vectors.parquet"), embeddings=True)]
    taken = [(*command_words, "--dry-run") for command_words in taken]
    changes = [f"mount -t tmpfs none {hidden}"]
    changes += [f"mount --bind {other}/{name} {seen}/{name}" for name in ("a.tar", "a.parquet")]
    with cluster_of(1) as (cluster, _), cluster.add_apart(" && ".join(changes)):
        words = [sys.executable, "-c", ALL, json.dumps([*refused.values(), *taken])]
        done = subprocess.run(words, capture_output=True, text=True, timeout=600, env=environment(cluster), check=False)
        assert done.returncode == 0, done.stderr
        *results, codes = map(json.loads, done.stdout.splitlines())
        assert codes == [2] * len(refused) + [0] * len(taken), done.stderr
        for said, result in zip(refused, results, strict=False):
            assert said in result["error"]
            assert "does not see the same content there" in result["error"]
