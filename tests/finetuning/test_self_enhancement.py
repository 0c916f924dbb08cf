"""Test one step of SEIC's stage 2: what it changes, what it computes, and W workers against one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from gloo_workers import Result, assert_equal, on_workers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raycluster.config import MethodConfig
from raycluster.errors import ConfigError, RayclusterError
from raycluster.finetuning.self_enhancement import Progress, SelfEnhancement, Views, on_device, train
from raycluster.methods import registry
from raycluster.methods.losses.alignment import ROWS_A_CLUSTER

SIDE, DIM, CLUSTERS = 32, 16, 5


def tower() -> nn.Module:
    torch.manual_seed(0)
    vision = {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    return open_clip.CLIP(DIM, vision, text).visual


def normalized(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).float() / 255 - 0.5


SIZES = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1])


def enhancement(name: str = "seic", sizes: Tensor | None = None, **given: Any) -> SelfEnhancement:
    config = registry.configure(MethodConfig.model_validate({"name": name, **given}))
    method = registry.build(config, DIM, CLUSTERS, 50, seed=0)
    if name == "consensus":
        for parameter in method.parameters():
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    if name == "seic":
        # Random weights give confidences that differ.
        torch.nn.init.normal_(
            method.get_submodule("image_clustering").weight, std=0.1, generator=torch.Generator().manual_seed(3)
        )  # type: ignore[arg-type]
    return SelfEnhancement(tower(), method, normalized, rank=4, momentum=0.9, sizes=sizes)


def batch(n: int, rank: int = 0, world: int = 1, unreadable: tuple[int, ...] = ()) -> Views:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (2, n, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    readable = torch.ones(n, dtype=torch.bool)
    readable[list(unreadable)] = False
    share = slice(rank, None, world)
    return Views(pixels[0][share], pixels[1][share], readable[share], n)


HEADS = {
    "consensus": {"image_projection.weight", "image_projection.bias", "image_clustering.weight"},
    "seic": {f"image_{part}.{kind}" for part in ("projection", "clustering") for kind in ("weight", "bias")},
    "sic": {"head.weight", "head.bias"},
    "tac": {f"cluster_head_image.{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")},
    "dxmc": {f"cluster_head_image.{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")},
}


@pytest.mark.parametrize("name", HEADS)
def test_only_the_adaptation_and_the_image_head_move(name: str) -> None:
    model = enhancement(name)
    trainable = {parameter for parameter, value in model.named_parameters() if value.requires_grad}
    blocks = [f"tower.transformer.resblocks.{i}.attn.parametrizations.in_proj_weight.0" for i in range(2)]
    lora = {f"{block}.{matrix}" for block in blocks for matrix in "ab"}
    assert trainable == lora | {f"method.{parameter}" for parameter in HEADS[name]}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    for _ in range(2):
        model.step(optimizer, batch(12))
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == trainable | {f"soft_match.{key}" for key in ("mean", "variance", "started")}
    assert set(model.trained_state()) == changed


def test_the_loss_is_the_papers() -> None:
    model, views = enhancement(), batch(12, unreadable=(3,))
    keep = torch.arange(12) != 3
    with torch.no_grad():
        confidence, labels = model.logits(views.weak[keep]).softmax(dim=1).max(dim=1)
        mean, variance = confidence.double().mean(), confidence.double().var(correction=0)
        below = torch.exp(-((confidence.double() - mean) ** 2) / (2 * variance))
        weights = torch.where(confidence >= mean, 1.0, below)
        each = cross_entropy(model.logits(views.strong[keep]), labels, reduction="none")
        expected = (weights * each).mean()
        agreement = (model.logits(views.strong[keep]).argmax(dim=1) == labels).float().mean()
    terms = model.step(torch.optim.SGD(model.parameters(), lr=0.0), views)
    torch.testing.assert_close(terms["loss"].double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms["confidence"], confidence.mean())
    torch.testing.assert_close(terms["agreement"], agreement)
    torch.testing.assert_close(terms["weight"].double(), weights.mean(), rtol=1e-5, atol=1e-6)


def test_labels_are_taken_from_aligned_probabilities() -> None:
    model, views = enhancement(sizes=SIZES), batch(12)
    with torch.no_grad():
        probabilities = model.logits(views.weak).softmax(dim=1)
        running = SIZES.lerp(probabilities.mean(dim=0), 12 / (ROWS_A_CLUSTER * CLUSTERS))
        aligned = probabilities * SIZES / running
        confidence, labels = (aligned / aligned.sum(dim=1, keepdim=True)).max(dim=1)
        logits = model.logits(views.strong)
    terms = model.step(torch.optim.SGD(model.parameters(), lr=0.0), views)
    weights = model.soft_match.weights(confidence).float()
    expected = (weights * cross_entropy(logits, labels, reduction="none")).mean()
    torch.testing.assert_close(terms["loss"], expected)
    torch.testing.assert_close(terms["confidence"], confidence.mean())


def steps_on(rank: int, world: int, n: int) -> Result:
    model = enhancement(sizes=SIZES)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0)
    losses = [model.step(optimizer, batch(n, rank, world, unreadable=(2,)))["loss"] for _ in range(3)]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {
        "losses": torch.stack(losses),
        "mean": model.soft_match.mean,
        "sizes": model.get_buffer("alignment.running"),
        **gradients,
    }


@pytest.mark.parametrize(("world", "n"), [(2, 12), (2, 11), (4, 3)])
def test_workers_equal_one(world: int, n: int, tmp_path: Path) -> None:
    alone = steps_on(0, 1, n)
    assert_equal(on_workers(world, tmp_path, steps_on, n), alone, rtol=1e-3, atol=1e-6)


def test_a_checkpoint_goes_on_where_it_was() -> None:
    one, two = enhancement(sizes=SIZES), enhancement(sizes=SIZES)
    one.step(torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.1), batch(12))
    two.load_trained_state({name: value.clone() for name, value in one.trained_state().items()})
    again = [model.step(torch.optim.SGD(model.parameters(), lr=0.0), batch(12))["loss"] for model in (one, two)]
    assert again[0] == again[1]


def test_a_checkpoint_of_another_model_is_refused() -> None:
    with pytest.raises(RayclusterError, match="the checkpoint is of another encoder or method"):
        enhancement("sic").load_trained_state(enhancement("seic").trained_state())


def test_a_method_without_a_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="finetune: method kmeans has no image head"):
        enhancement("kmeans")


def test_a_batch_without_a_readable_picture_is_an_error() -> None:
    model = enhancement()
    with pytest.raises(RayclusterError, match="no picture of the batch could be read"):
        model.step(torch.optim.SGD(model.parameters(), lr=0.0), batch(3, unreadable=(0, 1, 2)))


def trained(model: SelfEnhancement) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0)


def test_an_epoch_is_summed_up_whether_or_not_it_was_interrupted() -> None:
    whole, parts = Progress(), Progress()
    batches = [batch(n) for n in (12, 12, 9, 12)]
    model = enhancement()
    train(model, trained(model), batches, whole, steps_per_epoch=2)
    assert whole.step == 4
    assert len(whole.history) == 2
    assert whole.sums == {}
    model = enhancement()
    optimizer = trained(model)
    train(model, optimizer, batches[:3], parts, steps_per_epoch=2)
    assert len(parts.history) == 1
    train(model, optimizer, batches[3:], Progress(**asdict(parts)), steps_per_epoch=2)
    assert parts.history == whole.history[:1]


def test_a_loss_that_is_not_finite_ends_the_training_and_names_the_step() -> None:
    model, progress = enhancement(), Progress()
    optimizer = trained(model)
    train(model, optimizer, [batch(12)], progress, steps_per_epoch=2)
    with torch.no_grad():
        model.method.get_submodule("image_clustering").weight.fill_(float("nan"))  # type: ignore[operator, union-attr]
    with pytest.raises(
        RayclusterError, match=r"the loss became nan at step 2, epoch 1; lower `finetune\.learning_rate`"
    ):
        train(model, optimizer, [batch(12)], progress, steps_per_epoch=2)
    assert progress.step == 1


def test_too_little_gpu_memory_names_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model = enhancement()
    monkeypatch.setattr(model, "step", step)
    with pytest.raises(RayclusterError, match=r"step 1 .CUDA out of memory.; lower `finetune\.batch_size`, set"):
        train(model, trained(model), [batch(12)], Progress(), steps_per_epoch=2)


def test_gradient_checkpointing_changes_nothing() -> None:
    plain, saving = enhancement(), enhancement()
    saving.tower.set_grad_checkpointing()  # type: ignore[operator]
    terms = [model.step(torch.optim.SGD(model.parameters(), lr=0.0), batch(12)) for model in (plain, saving)]
    torch.testing.assert_close(terms[0], terms[1])
    for (name, one), two in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=name)


def test_batches_come_on_the_device_in_their_order_and_one_ahead() -> None:
    taken: list[int] = []

    def stream() -> Iterator[Views]:
        for number in range(4):
            taken.append(number)
            pixels = torch.full((2, 4, 4, 3), number, dtype=torch.uint8)
            yield Views(pixels, pixels + 100, torch.tensor([True, False]), 2)

    for number, views in enumerate(on_device(stream(), torch.device("cpu"))):
        assert taken == list(range(min(4, number + 2)))
        assert views.weak.unique().tolist() == [number]
        assert views.strong.unique().tolist() == [number + 100]
        assert views.readable.tolist() == [True, False]
    assert number == 3
    assert list(on_device([], torch.device("cpu"))) == []
