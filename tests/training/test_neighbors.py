"""Test that neighbor searches in blocks on Ray give the same as a search in one process."""

from __future__ import annotations

import numpy as np
import pytest
import ray
import torch

from raycluster.clustering.neighbors import nearest_neighbors
from raycluster.compute.resources import Resources
from raycluster.config import MethodConfig
from raycluster.methods import registry
from raycluster.training.neighbors import find_graphs

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

MANY_NODES = Resources(cpus=4, node_cpus=1, gpus=0, encoder_actors=1, train_workers=1)
"""Resources as if each core were a node. A search takes three places beside the caller's own."""


def test_every_graph_of_a_method_is_found_in_blocks() -> None:
    x = torch.randn(90, 8, generator=torch.Generator().manual_seed(1)).half()
    counterparts = x.roll(1, dims=1)
    config = MethodConfig.model_validate({"name": "dxmc", "neighbors": 6})
    given = {"row_ids": np.arange(90), "images": x.numpy(), "counterparts": counterparts.numpy()}
    data = {name: ray.put(array) for name, array in given.items()}
    found = find_graphs(lambda: registry.build(config, 8, 4, 90, 0), 90, ray.put(data), MANY_NODES)
    assert set(found) == {"image_neighbors", "text_neighbors"}
    np.testing.assert_array_equal(found["image_neighbors"], nearest_neighbors(x, 6).numpy())
    np.testing.assert_array_equal(found["text_neighbors"], nearest_neighbors(counterparts, 6).numpy())
