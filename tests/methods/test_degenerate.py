"""Test that every method gives a clear error or a defined result, never NaN, on sets that no clustering was made for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.clustering.scores import label_free_scores
from raycluster.config import MethodConfig
from raycluster.errors import ConfigError
from raycluster.methods import registry
from raycluster.methods.base import FittedMethod, TrainedMethod, TrainingData
from raycluster.model.prediction import probabilities, top_two
from raycluster.training.loop import find_neighbors, train

METHODS: list[dict[str, Any]] = [
    {"name": "kmeans"},
    {"name": "consensus"},
    {"name": "consensus", "text_weight": 0.0},
    {"name": "tac", "trained": False},
    {"name": "tac"},
    {"name": "dxmc", "instance_weight": 1.0, "instance_dim": 16},
    {"name": "sic", "uniqueness": 0.0},
    {"name": "seic"},
]


def random(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))


SETS = {
    "all equal": random(1).repeat(40, 1),
    "duplicates of three": random(3).repeat(14, 1),
    "as many clusters as images": random(6),
    "half is one image": torch.cat([random(1).repeat(30, 1), random(30, 1)]),
    "barely more images than clusters": random(7),
    "tiny and huge": torch.cat([1e-4 * random(20), 1e3 * random(20, 1)]),
}


def fitted(method: dict[str, Any], images: Tensor, nouns: Tensor, clusters: int) -> np.ndarray:
    """Probabilities [N, C] after selecting nouns, pairing and training, all as the stages do it."""
    fits = method["name"] in ("kmeans", "consensus") or method.get("trained") is False
    config = registry.configure(MethodConfig.model_validate(method if fits else {**method, "epochs": 8}))
    space = registry.space(config)
    kept = nouns[space.select(images.half(), nouns, clusters, seed=0)]
    paired = space.pair(images.half(), kept).half()
    data = TrainingData(torch.arange(len(images)), images.half(), paired, kept, vocabulary=nouns)
    built = registry.build(config, 8, clusters, len(images), seed=0)
    if isinstance(built, FittedMethod):
        built.fit(data)
    elif isinstance(built, TrainedMethod):
        train(built, data, find_neighbors(built, data))
    return probabilities(built, images.numpy()).numpy()


@pytest.mark.parametrize("images", SETS.values(), ids=SETS.keys())
@pytest.mark.parametrize("method", METHODS, ids=lambda method: "-".join(map(str, method.values())))
def test_every_method_gives_probabilities(method: dict[str, Any], images: Tensor) -> None:
    p = fitted(method, images, normalize(random(12, 5), dim=1), clusters=6)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-4)
    assert (p >= 0).all()
    # Equal images are in the same cluster.
    _, first = np.unique(images.half().numpy(), axis=0, return_inverse=True)
    for group in range(first.max() + 1):
        assert len(np.unique(p[first == group].argmax(axis=1))) == 1
    cluster, confidence, margin, _ = top_two(torch.from_numpy(p))
    scores = label_free_scores(images.numpy(), None, cluster, confidence, margin, 6)
    assert not any(value is not None and np.isnan(value) for value in scores.values())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: "-".join(map(str, method.values())))
def test_one_noun_is_an_error_or_a_vocabulary(method: dict[str, Any]) -> None:
    images, nouns = random(40), normalize(random(1, 5), dim=1)
    if method["name"] == "sic":
        with pytest.raises(ConfigError, match=r"method\.uniqueness"):
            fitted(method, images, nouns, clusters=3)
        return
    np.testing.assert_allclose(fitted(method, images, nouns, clusters=3).sum(axis=1), 1, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS[4:], ids=lambda method: "-".join(map(str, method.values())))
def test_a_rate_that_explodes_stops_with_the_field_to_lower(method: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=r"the loss became nan in epoch \d+; lower `method\.learning_rate`"):
        fitted({**method, "learning_rate": 1e30}, random(40), normalize(random(12, 5), dim=1), clusters=3)
