"""The part of a vision tower that is fine-tuned: LoRA on query and value projections, or the last stage of a tower without attention.

Low-Rank Adaptation (ICLR 2022, arXiv 2106.09685) is a parametrization here. open_clip and timm pack queries, keys and values into one
matrix; the parametrization changes its rows of queries and values and leaves those of keys alone. (peft adapts a packed matrix as a
whole.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from raycluster.errors import ConfigError

STAGES = ("stages", "blocks", "layers", "features", "layer4")
"""Attribute names under which towers keep their list of stages; `layer4` (ResNets) is the last stage itself."""


@dataclass(frozen=True)
class Adaptation:
    """Which parameters of a tower are trained."""

    kind: str
    """`lora`, or `last stage`."""
    names: tuple[str, ...]
    """Names of all trainable parameters."""


class LowRankUpdate(nn.Module):
    """W → W + α/r · B A on some blocks of rows. A [blocks, r, in] starts at random, B [blocks, rows, r] at zero."""

    def __init__(self, weight: Tensor, parts: tuple[bool, ...], rank: int) -> None:
        """`parts`: one entry for each equal block of rows of the matrix, which says whether the block is adapted. α = r, as in SEIC."""
        super().__init__()
        rows, columns = weight.shape[0] // len(parts), weight.shape[1]
        self.parts = parts
        self.a = nn.Parameter(weight.new_empty(sum(parts), rank, columns))
        self.b = nn.Parameter(weight.new_zeros(sum(parts), rows, rank))
        for a in self.a:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the matrix [blocks · rows, in] with its updates."""
        updates = iter(self.b @ self.a)
        blocks = weight.chunk(len(self.parts))
        return torch.cat([w + next(updates) if part else w for w, part in zip(blocks, self.parts, strict=True)])


def adapt(tower: nn.Module, rank: int) -> Adaptation:
    """Freeze the tower and make the part for fine-tuning trainable, in place. The tower still computes the same as before.

    Raises :class:`ConfigError` for a tower that has neither attention blocks nor stages with a known name.
    """
    tower.requires_grad_(False)
    blocks = [matrices for module in list(tower.modules()) if (matrices := _projections(module))]
    # A single attention block is the pooling at the end of a ConvNet.
    attention = len(blocks) > 1
    for module, name, parts in [matrix for matrices in blocks for matrix in matrices] if attention else []:
        weight = getattr(module, name)
        parametrize.register_parametrization(module, name, LowRankUpdate(weight, parts, min(rank, *weight.shape)))
    if not attention:
        _last_stage(tower).requires_grad_(True)
    trainable = tuple(name for name, parameter in tower.named_parameters() if parameter.requires_grad)
    return Adaptation("lora" if attention else "last stage", trainable)


def merge(tower: nn.Module) -> None:
    """Write the updates into the matrices, in place. The tower is then a plain one again, as fast as before."""
    for module in list(tower.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def _projections(module: nn.Module) -> list[tuple[nn.Module, str, tuple[bool, ...]]]:
    """Return the projection matrices of an attention module; empty for other modules.

    Each entry is (owner, name of the matrix, which blocks of its rows are queries or values).
    """
    packed = (True, False, True)
    if isinstance(getattr(module, "in_proj_weight", None), nn.Parameter):
        return [(module, "in_proj_weight", packed)]
    if isinstance(qkv := getattr(module, "qkv", None), nn.Linear):
        return [(qkv, "weight", packed)]
    separate = [getattr(module, name, None) for name in ("q_proj", "k_proj", "v_proj")]
    if all(isinstance(projection, nn.Linear) for projection in separate):
        return [(module.get_submodule(name), "weight", (True,)) for name in ("q_proj", "v_proj")]
    return []


def _last_stage(tower: nn.Module) -> nn.Module:
    for module in tower.modules():
        for name in STAGES:
            stage = getattr(module, name, None)
            if isinstance(stage, (nn.Sequential, nn.ModuleList)) and len(stage):
                return stage if name == "layer4" else stage[-1]
    raise ConfigError(
        f"finetune: the vision tower {type(tower).__name__} has neither attention blocks nor stages that raycluster knows; "
        "choose an `encoder.model` with attention (a ViT)"
    )
