"""A checkpoint of a training: weights and optimizer as safetensors, the rest as JSON.

A checkpoint holds no random state, because every draw follows from seed, epoch and row id (:mod:`raycluster.randomness`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

STATE, RECORD = "state.safetensors", "record.json"


def save(folder: Path, state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None, record: Any) -> None:
    """Write all that :func:`restore` needs into an existing folder. `state`: tensors by name; `record`: JSON data."""
    tensors = {f"state.{key}": _plain(value) for key, value in state.items()}
    if optimizer is not None:
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": _plain(value) for slot, value in slots.items()}
    save_file(tensors, folder / STATE)
    (folder / RECORD).write_text(json.dumps(record))


def restore(folder: Path, optimizer: torch.optim.Optimizer | None = None) -> tuple[dict[str, Tensor], Any]:
    """Return state and record of a checkpoint. The optimizer, if given, is restored in place."""
    tensors = load_file(folder / STATE)
    if optimizer is not None:
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, slot = key.split(".", 2)
                slots.setdefault(int(index), {})[slot] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    return state, json.loads((folder / RECORD).read_text())


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
