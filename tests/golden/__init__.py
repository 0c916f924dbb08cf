"""Load arrays recorded from the authors' code, start a method with the same parameters, and compare with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent


def load(name: str) -> dict[str, Tensor]:
    """The arrays of a golden file; floating ones in double precision."""
    with np.load(HERE / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
    return {key: value.double() if value.is_floating_point() else value for key, value in arrays.items()}


def start_from(method: torch.nn.Module, arrays: dict[str, Tensor]) -> None:
    """Load every `param_*` of a golden file into the method. All other values of the method must be buffers."""
    start = {key.removeprefix("param_"): value for key, value in arrays.items() if key.startswith("param_")}
    missing, unexpected = method.load_state_dict(start, strict=False)
    assert not unexpected
    assert not set(missing) & {name for name, _ in method.named_parameters()}


def compare(found: dict[str, Tensor], arrays: dict[str, Tensor], prefix: str) -> int:
    """Compare each tensor in float64, with rtol 1e-9, with the golden array `prefix + name`; return how many were compared."""
    names = [name for name in found if prefix + name in arrays]
    for name in names:
        torch.testing.assert_close(found[name].double(), arrays[prefix + name], rtol=1e-9, atol=1e-12, msg=name)
    return len(names)
