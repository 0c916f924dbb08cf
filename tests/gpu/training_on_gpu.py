"""Check training: an epoch of heads, and steps of LoRA fine-tuning with small and large batches."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from clusters_on_gpu import CLUSTERS, made_up, on
from encoders_on_gpu import random_encoder
from table import Table, peak_gib, timed
from torch.nn.functional import cosine_similarity, normalize

from raycluster.config import EncoderConfig, MethodConfig
from raycluster.encoder.clip import ClipEncoder, resolve_encoder
from raycluster.finetuning.self_enhancement import Progress, SelfEnhancement, Views, on_device
from raycluster.finetuning.self_enhancement import train as finetune
from raycluster.methods import registry
from raycluster.methods.base import TrainedMethod, TrainingData
from raycluster.semantics.pairing import text_counterparts
from raycluster.training.loop import find_neighbors, train

RANK = 128


def check_training(table: Table, device: str, small: bool, _: bool) -> None:
    """Add the rows of heads and fine-tuning to the table."""
    _check_heads(table, device, 1000 if small else 20_000, 32 if small else 512)
    with tempfile.TemporaryDirectory() as folder:
        model = "builtin" if small else random_encoder("ViT-B-32", Path(folder))
        steps = 2 if small else 10
        for batch in (8, 16) if small else (128, 512):
            _check_finetuning(table, model, device, batch, steps)


def _check_heads(table: Table, device: str, n: int, dim: int) -> None:
    losses = {}
    for where in dict.fromkeys(("cpu", device)):
        data = _with_text(n, dim, where)
        method = registry.build(MethodConfig.model_validate({"name": "tac", "epochs": 1}), dim, CLUSTERS, n, seed=0)
        assert isinstance(method, TrainedMethod)
        method.to(where)
        neighbors = find_neighbors(method, data)
        history, seconds = timed(lambda: train(method, data, neighbors), where)  # noqa: B023
        losses[where] = history[0]["loss"]
        table.add(f"heads (tac), {n} × {dim}, one epoch: {where}", seconds, "s")
    difference = abs(losses[device] - losses["cpu"]) / abs(losses["cpu"])
    table.add(f"heads (tac), {n} × {dim}: 1 − relative difference of the loss to cpu", 1 - difference, at_least=0.99)


def _with_text(n: int, dim: int, device: str) -> TrainingData:
    data = on(made_up(n, dim)[0], device)
    nouns = data.vocabulary
    assert nouns is not None
    counterparts = text_counterparts(normalize(data.images.float(), dim=1), nouns, 0.005)
    return TrainingData(data.row_ids, data.images, normalize(counterparts, dim=1), nouns)


def _check_finetuning(table: Table, model: str, device: str, batch: int, steps: int) -> None:
    name = f"LoRA, rank {RANK}, batch {batch}"
    enhancement, side = _enhancement(model)
    views = _views(batch, side)
    with torch.no_grad():
        expected = enhancement.logits(views.weak[:8])
        enhancement.to(device)
        found = enhancement.logits(views.weak[:8].to(device)).cpu()
    table.add(f"{name}: cosine of logits to cpu, least", float(cosine_similarity(found, expected).min()), at_least=0.99)
    before = {key: value.clone() for key, value in enhancement.trained_state().items()}
    optimizer = torch.optim.AdamW([p for p in enhancement.parameters() if p.requires_grad], lr=5e-5, weight_decay=0.0)
    progress = Progress()

    def take(count: int) -> None:
        # As in a real training, the pictures come from host memory, one batch ahead of the step that uses them.
        finetune(enhancement, optimizer, on_device([views] * count, torch.device(device)), progress, steps + 1)

    take(1)
    peak_gib(device)
    _, seconds = timed(lambda: take(steps), device)
    after = enhancement.trained_state()
    moved = sum(not torch.equal(value, before[key]) for key, value in after.items()) / len(after)
    table.add(f"{name}: seconds of {steps} steps", seconds, "s")
    table.add(f"{name}: training images a second", steps * batch / seconds, "images/s")
    table.add(f"{name}: peak memory", peak_gib(device), "GiB")
    table.add(f"{name}: share of trained tensors that moved", moved, at_least=0.9)
    table.add(f"{name}: loss is finite", float(math.isfinite(progress.history[0]["loss"])), at_least=1.0)


def _enhancement(model: str) -> tuple[SelfEnhancement, tuple[int, int, int]]:
    """The model as `finetune` builds it, with fp32 weights made on the CPU; and the shape of its pictures."""
    spec = resolve_encoder(EncoderConfig(model=model, precision="fp32"), False)
    encoder = ClipEncoder.load(spec, "cpu")
    torch.manual_seed(0)
    method = registry.build(MethodConfig(name="seic"), spec.dim, CLUSTERS, 1000, seed=0)
    sizes = torch.full((CLUSTERS,), 1 / CLUSTERS)
    return SelfEnhancement(encoder.model.visual, method, encoder.normalized, RANK, 0.999, sizes), spec.pixel_shape


def _views(n: int, shape: tuple[int, int, int]) -> Views:
    pixels = torch.randint(0, 256, (2, n, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Views(pixels[0], pixels[1], torch.ones(n, dtype=torch.bool), n)
