"""Test which shares of cores and GPUs the settings of the endpoint accept."""

from __future__ import annotations

from typing import Any

import pytest

from raycluster.errors import ConfigError
from raycluster.section import validate
from raycluster.serving.settings import ServeSettings


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ({"model": {"num_cpus": 1.5}}, r"`model\.num_cpus`: Ray takes a fraction only below 1; give a whole number"),
        ({"ingress": {"num_cpus": 2.5}}, r"`ingress\.num_cpus`: Ray takes a fraction only below 1"),
        ({"model": {"num_gpus": 2}}, r"`model\.num_gpus`: Input should be less than or equal to 1"),
    ],
)
def test_demands_that_ray_would_refuse_are_refused_by_name(given: dict[str, Any], means: str) -> None:
    with pytest.raises(ConfigError, match=means):
        validate({"run": "runs/photos", **given}, ServeSettings, "serve")


def test_shares_of_a_gpu_and_of_a_core_are_accepted() -> None:
    model = {"num_cpus": 0.5, "num_gpus": 0.25}
    assert validate({"run": "runs/photos", "model": model}, ServeSettings, "serve").model.num_gpus == 0.25
