"""The stages of a run, in the order of the data's way. Each is a file of this package."""

from __future__ import annotations

from raycluster.pipeline.stage import Stage
from raycluster.pipeline.stages import (
    assign,
    assign_new,
    baseline,
    describe,
    drift,
    embed,
    evaluate,
    finetune,
    manifest,
    reembed,
    report,
    semantics,
    shard,
    train,
)

RUN: tuple[Stage, ...] = (
    manifest.STAGE,
    shard.STAGE,
    embed.STAGE,
    semantics.STAGE,
    train.STAGE,
    baseline.STAGE,
    finetune.STAGE,
    reembed.STAGE,
    assign.STAGE,
    describe.STAGE,
    evaluate.STAGE,
    report.STAGE,
)
"""The stages of a run. With shards, `shard` comes before all reading of pictures. With fine-tuning there are three more."""

NEW_PICTURES: tuple[Stage, ...] = (manifest.STAGE, embed.STAGE, assign_new.STAGE, drift.STAGE)
"""The stages of assigning new pictures to the clusters of a finished model."""

FACTS = {stage.name: stage.facts for stage in (*NEW_PICTURES, *RUN)}
"""What the markers of each stage hold besides."""
