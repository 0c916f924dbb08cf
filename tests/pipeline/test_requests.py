"""Count the requests that each stage of a run sends to S3: they are paid for, and each takes its time.

pytest -m slow tests/pipeline/test_requests.py -s        # prints the counts
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from drawn_run import NOUNS
from flaky_server import FlakyServer
from PIL import Image

import raycluster
from raycluster.config import StorageConfig
from raycluster.encoder import embed
from raycluster.images import shards
from raycluster.pipeline import run as pipeline
from raycluster.pipeline.context import RunContext
from raycluster.pipeline.stage import Outcome, Stage
from raycluster.pipeline.step import Step
from raycluster.storage.location import Location, locate

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900), pytest.mark.usefixtures("local_ray")]

IMAGES = 5000
TABLES = 5
"""Tables that one stage reads at most: the manifest, the embeddings, the counterparts, and the assignments before and after fine-tuning."""
CONSTANT = 100
"""Requests of a stage whatever its size: markers, the lock, the report."""
SHOWN = 2 * 2 * 12
"""Most pictures of the report: the most and the least typical ones of two clusters."""
READERS = ("shard", "embed", "reembed", "finetune")
"""Stages that read every picture."""


@pytest.fixture(scope="module")
def server(s3: StorageConfig) -> Iterator[tuple[FlakyServer, StorageConfig, Location]]:
    """The server behind a counter, and a prefix with small pictures of two colors."""
    with FlakyServer(str(s3.endpoint_url)) as counter:
        root = locate("s3://raycluster-test/requests", s3)

        def draw(number: int) -> None:
            picture = io.BytesIO()
            color = (200, 30, number % 256) if number % 2 else (20, number % 256, 220)
            Image.new("RGB", (48, 48), color).save(picture, "JPEG")
            (root / f"photos/{number % 7}/{number:05d}.jpg").write_bytes(picture.getvalue())

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(draw, range(IMAGES)))
        (root / "nouns.txt").write_bytes("\n".join(NOUNS).encode())
        yield counter, s3.model_copy(update={"endpoint_url": counter.url}), root


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["originals", "shards and fine-tuning"])
def test_requests_of_each_stage_at_5000_images(
    sharded: bool, server: tuple[FlakyServer, StorageConfig, Location], monkeypatch: pytest.MonkeyPatch
) -> None:
    counter, storage, root = server
    spent: dict[str, Counter[str]] = {}

    def counted(stage: Stage) -> Stage:
        def run(ctx: RunContext, step: Step) -> Outcome:
            before = Counter(counter.counts)
            outcome = stage.run(ctx, step)
            spent[stage.name] = counter.counts - before
            return outcome

        return replace(stage, run=run)

    monkeypatch.setattr(pipeline, "RUN", tuple(map(counted, pipeline.RUN)))
    before = Counter(counter.counts)
    more: dict[str, Any] = {}
    if sharded:
        tuning = {"enabled": True, "epochs": 1, "batch_size": 50, "train_sample": IMAGES, "max_lost_clusters": 1}
        more = {"shards": {"enabled": True, "size": 48}, "finetune": tuning}
    config = {
        "images": f"{root.uri}/photos",
        "output": f"{root.uri}/{'sharded' if sharded else 'run'}",
        "storage": storage.model_dump(),
        "clusters": 2,
        "encoder": {"model": "builtin", "precision": "fp32"},
        "vocabulary": {"source": f"{root.uri}/nouns.txt", "prompts": ["a picture of a {}"]},
        "resources": {"encoder_actors": 1, "train_workers": 1},
        **more,
    }
    result = raycluster.run(config)
    total = counter.counts - before
    for name, counts in spent.items():
        print(f"{name:10} {dict(counts)}")
    print(f"{'all':10} {dict(total)}")
    assert result.stages["embed"]["rows"] == IMAGES
    assert total["LIST"] <= IMAGES / 1000 + 20 * len(spent)
    parts = IMAGES / embed.BLOCK_ROWS + IMAGES / shards.PART_ROWS
    for name, counts in spent.items():
        allowed = 2 * IMAGES + 2 * parts if name in READERS else 10 * TABLES + (2 * SHOWN if name == "report" else 0)
        assert counts.total() <= allowed + CONSTANT, name

    before = Counter(counter.counts)
    again = raycluster.run(config)
    assert {entry["state"] for entry in again.stages.values()} == {"skipped"}
    nothing = counter.counts - before
    print(f"{'again':10} {dict(nothing)}")
    assert nothing.total() <= IMAGES / 1000 + 10 * len(spent) + CONSTANT
