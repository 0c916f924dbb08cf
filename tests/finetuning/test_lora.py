"""Test what is trained in real towers (with random weights): exactly the updates of queries and values, or the last stage."""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import pytest
import torch
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from raycluster.errors import ConfigError
from raycluster.finetuning.lora import adapt, merge


def vit() -> nn.Module:
    """open_clip's ViT-B-32 with only two blocks, to be quick. One test below uses the full depth."""
    config: dict[str, Any] = open_clip.get_model_config("ViT-B-32")
    config["vision_cfg"]["layers"] = 2
    torch.manual_seed(0)
    return open_clip.CLIP(config["embed_dim"], config["vision_cfg"], {**config["text_cfg"], "layers": 1}).visual.eval()


def timm_tower(name: str) -> nn.Module:
    torch.manual_seed(0)
    return TimmModel(name, embed_dim=32, pretrained=False).eval()


def moved(tower: nn.Module) -> nn.Module:
    """Change every trainable parameter a little, as a step does."""
    with torch.no_grad():
        for parameter in tower.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return tower


def pictures(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))


TOWERS = {"open_clip": (vit, 224), "timm": (lambda: timm_tower("vit_tiny_patch16_224"), 224)}


@pytest.mark.parametrize(("make", "side"), TOWERS.values(), ids=TOWERS)
def test_adapted_towers_start_as_they_were_and_merge_into_plain_ones(make: Any, side: int) -> None:
    tower, x = make(), pictures(side)
    plain = copy.deepcopy(tower)
    adaptation = adapt(tower, rank=8)
    assert adaptation.kind == "lora"
    torch.testing.assert_close(tower(x), plain(x))
    adapted = moved(tower)(x)
    assert (adapted - plain(x)).abs().max() > 1e-3
    merge(tower)
    torch.testing.assert_close(tower(x), adapted, rtol=1e-5, atol=1e-5)
    assert {name: p.shape for name, p in tower.state_dict().items()} == {
        name: p.shape for name, p in plain.state_dict().items()
    }


@pytest.mark.parametrize(("make", "side"), TOWERS.values(), ids=TOWERS)
def test_gradients_reach_queries_and_values_and_nothing_else(make: Any, side: int) -> None:
    tower = make()
    adaptation = adapt(tower, rank=8)
    moved(tower)(pictures(side)).square().sum().backward()
    with_gradient = {name for name, parameter in tower.named_parameters() if parameter.grad is not None}
    assert with_gradient == set(adaptation.names)
    assert all(name.endswith(("0.a", "0.b")) for name in adaptation.names)
    before = make().state_dict()
    merge(tower)
    changed = {name for name, value in tower.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    for name in changed:
        rows = len(before[name]) // 3
        keys = slice(rows, 2 * rows)
        assert torch.equal(tower.state_dict()[name][keys], before[name][keys])
        assert not torch.equal(tower.state_dict()[name][:rows], before[name][:rows])
        assert not torch.equal(tower.state_dict()[name][2 * rows :], before[name][2 * rows :])


@pytest.mark.long
def test_the_whole_vit_b_32_trains_two_matrices_a_block() -> None:
    tower = open_clip.create_model("ViT-B-32").visual.eval()
    adaptation = adapt(tower, rank=128)
    blocks = [f"transformer.resblocks.{i}.attn.parametrizations.in_proj_weight.0" for i in range(12)]
    assert set(adaptation.names) == {f"{block}.{matrix}" for block in blocks for matrix in "ab"}
    shapes = {tuple(p.shape) for p in tower.parameters() if p.requires_grad}
    assert shapes == {(2, 128, 768), (2, 768, 128)}


@pytest.mark.long
def test_a_tower_without_attention_trains_its_last_stage() -> None:
    tower, x = timm_tower("mobilenetv2_050"), pictures(64)
    plain = copy.deepcopy(tower)
    adaptation = adapt(tower, rank=8)
    assert adaptation.kind == "last stage"
    last = len(plain.trunk.blocks) - 1  # type: ignore[union-attr, arg-type]
    assert set(adaptation.names) == {
        name for name, _ in plain.named_parameters() if name.startswith(f"trunk.blocks.{last}.")
    }
    torch.testing.assert_close(tower(x), plain(x))
    merge(tower)


@pytest.mark.long
def test_resnets_train_layer4() -> None:
    tower = open_clip.create_model("RN50").visual
    adaptation = adapt(tower, rank=8)
    # The attention pooling after this stage is not an attention block.
    assert adaptation.kind == "last stage"
    assert {name.split(".")[0] for name in adaptation.names} == {"layer4"}


def test_an_unknown_tower_is_an_error() -> None:
    with pytest.raises(ConfigError, match="neither attention blocks nor stages"):
        adapt(nn.Linear(3, 3), rank=2)
