"""Test fine-tuning on Ray: the order of the pictures, one worker against two, killed workers, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from PIL import Image
from ray_workers import worker_killed_after_a_checkpoint

from raycluster.compute.resources import Resources
from raycluster.config import EncoderConfig, FinetuneConfig, MethodConfig, StorageConfig
from raycluster.demo.drawing import draw_dataset
from raycluster.encoder.clip import ClipEncoder, pil_transform, resolve_encoder
from raycluster.errors import ConfigError
from raycluster.finetuning.finetune import FinetuneJob, Tuned, finetune
from raycluster.finetuning.pixels import VIEW_STREAM, PixelJob, batches
from raycluster.finetuning.self_enhancement import Progress, Views, train
from raycluster.finetuning.views import strong_view, two_views
from raycluster.images.pictures import pictures
from raycluster.images.shard_pictures import shard_rows
from raycluster.images.shards import find_rows, group_ids, write_groups
from raycluster.methods import registry
from raycluster.methods.base import FittedMethod, Method, TrainingData
from raycluster.randomness import epoch_order, grouped_order, integers
from raycluster.storage.location import locate
from raycluster.tables.files import part_files

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(240)]

N, CLUSTERS, BATCH = 50, 4, 16
BUILT_IN = EncoderConfig(model="builtin")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Fifty drawings, of which one is gone."""
    folder = tmp_path_factory.mktemp("drawings")
    draw_dataset(folder, N, ("house", "fish", "tree", "star"), seed=5)
    uris = [str(path) for path in sorted(folder.glob("*/*"))]
    uris[7] = str(folder / "gone.png")
    return pa.table({"row_id": np.arange(N) * 3, "uri": uris, "size": pa.nulls(N, pa.int64())})


def job(**changes: Any) -> PixelJob:
    given = PixelJob(resolve_encoder(BUILT_IN, False), BUILT_IN, StorageConfig(), seed=2, n_rows=N, batch_size=BATCH)
    return replace(given, **changes)


def encoded(images: pa.Table, tower: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
    """Embeddings of the readable pictures, by the original encoder or, if given, with this vision tower."""
    encoder = ClipEncoder.load(job().spec, "cpu")
    if tower is not None:
        encoder.model.visual.load_state_dict(tower)
    show = pil_transform(encoder.spec)
    uris = [uri for uri in images["uri"].to_pylist() if not uri.endswith("gone.png")]
    return torch.from_numpy(encoder.encode_pixels(np.stack([show(Image.open(uri).convert("RGB")) for uri in uris])))


@pytest.fixture(scope="module")
def method(images: pa.Table) -> Method:
    """A method that is fitted to the four kinds."""
    made = registry.build(MethodConfig(name="consensus"), 96, CLUSTERS, N, seed=0)
    assert isinstance(made, FittedMethod)
    made.fit(TrainingData(torch.arange(N - 1), encoded(images)))
    return made


def resources(workers: int) -> Resources:
    cpus = max(2, os.cpu_count() or 2)
    return Resources(cpus, cpus, 0, encoder_actors=1, train_workers=workers)


def tuned(images: pa.Table, method: Method, folder: Path, workers: int = 1, **config: Any) -> Tuned:
    settings = FinetuneConfig(**{"rank": 8, "learning_rate": 2e-4, "batch_size": BATCH, "epochs": 3, **config})
    return finetune(
        settings, job(), method, torch.full((CLUSTERS,), 1 / CLUSTERS), images, locate(str(folder)), resources(workers)
    )


def streamed(images: pa.Table, steps: range, rank: int = 0, world: int = 1) -> list[Views]:
    cpus = Resources(2, 2, 0, encoder_actors=1, train_workers=1).pixel_cpus("group" in images.column_names)
    return list(batches(job(), ray.put(images), steps, rank, world, cpus))


def test_views_come_in_counted_order_and_as_drawn(images: pa.Table) -> None:
    found = streamed(images, range(2, 5))  # three steps an epoch: the second epoch begins at step 3
    assert [len(views.weak) for views in found] == [BATCH] * 3
    spec = job().spec
    weak, strong = pil_transform(spec), strong_view(spec.image_size)
    for step, views in zip(range(2, 5), found, strict=True):
        epoch, index = divmod(step, N // BATCH)
        positions = epoch_order(N, 2, epoch)[index * BATCH : (index + 1) * BATCH]
        seeds = integers(2, epoch, positions * 3, VIEW_STREAM, 2**31)
        for i, position in enumerate(positions.tolist()):
            assert bool(views.readable[i]) == (position != 7)
            if position != 7:
                picture = Image.open(images["uri"][position].as_py()).convert("RGB")
                expected = two_views(picture, weak, strong, int(seeds[i]))
                np.testing.assert_array_equal(views.weak[i], expected[0])
                np.testing.assert_array_equal(views.strong[i], expected[1])
    assert sum(int((~views.readable).sum()) for views in streamed(images, range(3))) <= 1


def test_workers_share_a_batch_row_by_row(images: pa.Table) -> None:
    whole = streamed(images, range(1, 3))
    for rank in range(3):
        for step, views in zip(whole, streamed(images, range(1, 3), rank, world=3), strict=True):
            assert views.total == BATCH
            assert torch.equal(views.strong, step.strong[rank::3])


@pytest.fixture(scope="module")
def undisturbed(images: pa.Table, method: Method, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    return tuned(images, method, tmp_path_factory.mktemp("undisturbed") / "f1")


def clusters(result: Tuned, images: pa.Table) -> torch.Tensor:
    return result.method.predict(encoded(images, result.tower)).argmax(dim=1)


def test_training_learns_its_own_labels_and_gives_a_plain_tower(undisturbed: Tuned, images: pa.Table) -> None:
    assert undisturbed.kind == "lora"
    assert [set(epoch) for epoch in undisturbed.history] == [
        {"loss", "confidence", "weight", "agreement", "readable"}
    ] * 3
    assert undisturbed.history[-1]["loss"] < undisturbed.history[0]["loss"]
    assert min(epoch["readable"] for epoch in undisturbed.history) < 1
    own = ClipEncoder.load(job().spec, "cpu").model.visual.state_dict()
    assert undisturbed.tower.keys() == own.keys()
    moved = {name for name, value in undisturbed.tower.items() if not torch.equal(value, own[name])}
    assert moved == {name for name in own if name.endswith("in_proj_weight")}
    assert all(name.endswith((".a", ".b")) for name in undisturbed.adapter)
    assert len(clusters(undisturbed, images).unique()) == CLUSTERS


@pytest.mark.slow
def test_two_workers_are_one(undisturbed: Tuned, images: pa.Table, method: Method, tmp_path: Path) -> None:
    both = tuned(images, method, tmp_path / "f2", workers=2)
    for one, two in zip(undisturbed.history, both.history, strict=True):
        assert two == pytest.approx(one, abs=1e-4)
    agreement = (clusters(both, images) == clusters(undisturbed, images)).float().mean()
    assert agreement >= 0.98


@pytest.mark.torture
def test_a_killed_worker_resumes_in_the_middle_of_an_epoch(
    undisturbed: Tuned, images: pa.Table, method: Method, tmp_path: Path
) -> None:
    with worker_killed_after_a_checkpoint(tmp_path):
        again = tuned(images, method, tmp_path / "f3", checkpoint_seconds=0)
    for one, two in zip(undisturbed.history, again.history, strict=True):
        assert two == pytest.approx(one, abs=1e-5)
    for name, value in undisturbed.tower.items():
        torch.testing.assert_close(again.tower[name], value, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def stored(images: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The places of the same pictures in shards: two files with row groups of four."""
    folder = locate(str(tmp_path_factory.mktemp("shards")))
    rows = images.append_column("image_id", images["uri"])
    for start in (0, 24):
        part = rows.slice(start, 24 if start == 0 else N)
        groups = (part.slice(first, 4) for first in range(0, len(part), 4))
        held = (shard_rows(group, pictures(group, StorageConfig(), 2**20), 96, 10**8) for group in groups)
        write_groups(folder / f"part-{start:012d}.parquet", held)
    return find_rows(part_files(folder), images["row_id"].to_numpy())


def test_shards_are_read_in_the_order_of_their_row_groups(stored: pa.Table, images: pa.Table) -> None:
    found = streamed(stored, range(1, 5))
    groups = group_ids(stored)
    assert sorted(set(groups.tolist())) == [*range(0, 72, 12), *range(72, 150, 12)]
    spec = job().spec
    weak, strong = pil_transform(spec), strong_view(spec.image_size)
    for step, views in zip(range(1, 5), found, strict=True):
        epoch, index = divmod(step, N // BATCH)
        positions = grouped_order(groups, 2, epoch)[index * BATCH : (index + 1) * BATCH]
        seeds = integers(2, epoch, positions * 3, VIEW_STREAM, 2**31)
        for i, position in enumerate(positions.tolist()):
            assert bool(views.readable[i]) == (position != 7)
            if position != 7:
                # These drawings are small, so their shard holds the originals.
                picture = Image.open(images["uri"][position].as_py()).convert("RGB")
                expected = two_views(picture, weak, strong, int(seeds[i]))
                np.testing.assert_array_equal(views.weak[i], expected[0])
                np.testing.assert_array_equal(views.strong[i], expected[1])


@pytest.mark.torture
def test_on_shards_two_workers_are_one(stored: pa.Table, method: Method, tmp_path: Path) -> None:
    two = tuned(stored, method, tmp_path / "s2", workers=2, epochs=2)
    config = FinetuneConfig(rank=8, learning_rate=2e-4, batch_size=BATCH, epochs=2)
    alone = FinetuneJob(config, job(), torch.full((CLUSTERS,), 1 / CLUSTERS))
    model, progress = alone.build(method, "cpu")[0], Progress()
    train(model, alone.optimizer(model), streamed(stored, range(alone.steps)), progress, alone.pixels.steps_per_epoch)
    for one, both in zip(progress.history, two.history, strict=True):
        assert both == pytest.approx(one, abs=1e-4)


def test_more_workers_than_images_are_refused(images: pa.Table, method: Method, tmp_path: Path) -> None:
    small = job(n_rows=3, batch_size=3)
    with pytest.raises(ConfigError, match=r"resources\.train_workers: 4 workers, but a batch has 3 images"):
        finetune(
            FinetuneConfig(),
            small,
            method,
            torch.ones(CLUSTERS),
            images.slice(0, 3),
            locate(str(tmp_path / "f5")),
            resources(4),
        )
