"""Test that weights which are not finite never become a checkpoint."""

from __future__ import annotations

import pytest
import torch

from raycluster.errors import RayclusterError
from raycluster.training import trainer


def test_weights_that_are_not_finite_never_become_a_checkpoint() -> None:
    state = {"good": torch.ones(2), "steps": torch.tensor(3), "bad": torch.tensor([0.0, float("nan")])}
    with pytest.raises(RayclusterError, match=r"1 of 3 tensors hold NaN or infinity \(bad, \{'step': 7\}\)"):
        trainer.report({"step": 7}, state, None, {})
