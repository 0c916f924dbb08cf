"""A checkpoint of a training: heads and optimizer as safetensors, the history as JSON. Randomness is counted and needs no state."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from raycluster.methods.base import Method
from raycluster.training.loop import History

STATE, HISTORY = "state.safetensors", "history.json"


def save(folder: Path, method: Method, optimizer: torch.optim.Optimizer | None, history: History) -> None:
    """Write all that :func:`restore` needs into an existing folder."""
    tensors = {f"method.{key}": _plain(value) for key, value in method.state_dict().items()}
    if optimizer is not None:
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": _plain(value) for slot, value in slots.items()}
    save_file(tensors, folder / STATE)
    (folder / HISTORY).write_text(json.dumps(history))


def restore(folder: Path, method: Method, optimizer: torch.optim.Optimizer | None = None) -> History:
    """Load heads, and optimizer if given, in place; returns the history."""
    tensors = load_file(folder / STATE)
    method.load_state_dict(
        {key.removeprefix("method."): value for key, value in tensors.items() if key.startswith("method.")}
    )
    if optimizer is not None:
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, slot = key.split(".", 2)
                slots.setdefault(int(index), {})[slot] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    history: History = json.loads((folder / HISTORY).read_text())
    return history


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
