"""Test that methods are found by name, that unknown constants are named, and that a restored method predicts the same."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from raycluster.config import MethodConfig
from raycluster.errors import ConfigError
from raycluster.methods import registry
from raycluster.methods.base import FittedMethod, TrainedMethod, TrainingData
from raycluster.training.loop import find_neighbors, train


def test_methods_are_found_by_name() -> None:
    assert registry.method_names() == ["consensus", "dxmc", "kmeans", "seic", "sic", "tac"]
    with pytest.raises(
        ConfigError, match=r"method\.name: unknown method 'umap'; choose one of consensus, dxmc, kmeans, seic, sic, tac"
    ):
        registry.method_class("umap")


def test_a_constant_of_another_method_is_named() -> None:
    with pytest.raises(
        ConfigError, match="method: unknown key `epochs`; known here: name, profile, train_sample, restarts"
    ):
        registry.configure(MethodConfig.model_validate({"name": "kmeans", "epochs": 3}))
    with pytest.raises(ConfigError, match="`temperature`"):
        registry.configure(MethodConfig.model_validate({"name": "dxmc", "temperature": -1}))


ALL = [{"name": "consensus"}, {"name": "kmeans"}, {"name": "tac", "trained": False}, {"name": "tac"}, {"name": "dxmc"}, {"name": "sic"}, {"name": "seic"}]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("constants", ALL, ids=str)
def test_a_restored_method_predicts_the_same(constants: dict[str, object]) -> None:
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    config = registry.configure(MethodConfig.model_validate(constants))
    nouns = normalize(x[:20].roll(1, dims=1), dim=1)
    kept = nouns[registry.space(config).select(x, nouns, 3, seed=0)]
    data = TrainingData(torch.arange(50), x.half(), registry.space(config).pair(x, kept).half(), kept, nouns)
    method = registry.build(config, 8, 3, 50, seed=4)
    if isinstance(method, FittedMethod):
        method.fit(data)
    elif isinstance(method, TrainedMethod):
        train(method, data, find_neighbors(method, data))
    name, state = str(constants["name"]), {key: value.clone() for key, value in method.state_dict().items()}
    again = registry.restore(name, method.constants, 8, 3, 50, state)
    assert torch.equal(method.predict(x), again.predict(x))
    assert again.constants == method.constants
    torch.testing.assert_close(method.predict(x).sum(dim=1), torch.ones(50))


def test_kmeans_does_not_see_the_scale_of_embeddings() -> None:
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    method = registry.build(MethodConfig(name="kmeans"), 8, 4, 60, seed=0)
    assert isinstance(method, FittedMethod)
    report = method.fit(TrainingData(torch.arange(60), 9 * x, None))
    assert 0 < report["mean_cosine"] <= 1
    torch.testing.assert_close(method.predict(x), method.predict(5 * x))
    nearest = (normalize(x, dim=1) @ method.state_dict()["centers"].T).argmax(dim=1)
    assert torch.equal(method.predict(x).argmax(dim=1), nearest)


def test_every_unknown_constant_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        registry.configure(MethodConfig.model_validate({"name": "dxmc", "restarts": 3, "tau": 1}))
    message = str(caught.value)
    assert message.count("unknown key") == 2
    assert "`restarts`" in message
    assert "`tau`" in message
    for known in ("temperature", "instance_weight", "neighbors", "batch_size", "epochs"):
        assert known in message


@pytest.mark.parametrize("name", ["consensus", "dxmc", "kmeans"])
def test_configuring_twice_changes_nothing(name: str) -> None:
    once = registry.configure(MethodConfig(name=name, profile="paper"))
    assert type(once) is registry.method_class(name).Config
    assert registry.configure(once) == once
