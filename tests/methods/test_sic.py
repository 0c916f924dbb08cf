"""Test SIC against recorded values of the authors' code and against plain sums."""

from __future__ import annotations

import math

import pytest
import torch
from golden import load as golden
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.errors import ConfigError
from raycluster.methods.base import TrainingData
from raycluster.methods.sic import SIC, SICConfig, semantic_centers, semantic_space
from raycluster.training.loop import find_neighbors, train


@pytest.mark.parametrize("name", ["sic_space_M300", "sic_space_M256"])
def test_the_kept_nouns_are_the_authors(name: str) -> None:
    g = golden(name)
    nouns, centers = g["noun_features"], g["image_centers"]
    kept = semantic_space(centers, nouns, int(g["gamma_r"]), float(g["gamma_u"]), batch_means=True)
    assert torch.equal(kept, g["selected_indices"])
    assert torch.equal(semantic_space(centers.float(), nouns.float(), int(g["gamma_r"]), 0.05, True), kept)
    relevant = semantic_space(centers, nouns, int(g["gamma_r"]), -1.0, batch_means=True)
    assert torch.equal(relevant, g["relevance_indices"])
    unique = semantic_space(centers, nouns, len(nouns), float(g["gamma_u"]), batch_means=True)
    assert torch.equal(unique, g["uniqueness_indices"])
    plain = semantic_space(centers, nouns, len(nouns), float(g["gamma_u"]), batch_means=False)
    assert torch.equal(plain, g["uniqueness_indices_if_plain_mean"])


@pytest.mark.parametrize("name", ["sic_centers_N60_C4", "sic_centers_N203_C10"])
def test_centers_and_pseudo_labels_are_the_authors(name: str) -> None:
    g = {key: value.float() if value.is_floating_point() else value for key, value in golden(name).items()}
    images, nouns = g["image_features"], g["noun_features"]
    logits = images @ g["head_weight"].T + g["head_bias"]
    per_center, per_noun = int(g["images_per_center"]), int(g["xi_a"])
    image_centers, text_centers = semantic_centers(logits, images, nouns, per_center, per_noun)
    torch.testing.assert_close(image_centers, g["image_centers"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(text_centers, g["text_centers"], rtol=1e-5, atol=1e-6)
    assert torch.equal((images @ text_centers.T).argmax(dim=1), g["pseudo_label"])


@pytest.mark.parametrize("name", ["sic_centers_N60_C4", "sic_centers_N203_C10"])
def test_an_epoch_starts_with_the_authors_centers_in_pieces_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    g = {key: value.float() if value.is_floating_point() else value for key, value in golden(name).items()}
    n, clusters, dim = len(g["image_features"]), *g["head_weight"].shape
    config = SICConfig(name="sic", center_share=float(golden(name)["xi_c"]), center_nouns=int(g["xi_a"]))
    method = SIC(config, dim, clusters, n, seed=0)
    start = {"head.weight": g["head_weight"], "head.bias": g["head_bias"]}
    method.load_state_dict({**method.state_dict(), **start})
    data = TrainingData(torch.arange(n), g["image_features"], None, g["noun_features"])
    monkeypatch.setattr("raycluster.semantics.pairing.CHUNK_BYTES", 4 * n * 3)
    method.start_epoch(data)
    torch.testing.assert_close(method.semantic_centers, g["text_centers"], rtol=1e-5, atol=1e-6)
    rows = torch.arange(n)
    outputs = method.forward_batch(data, find_neighbors(method, data), rows, epoch=0)
    assert torch.equal(outputs["pseudo_labels"], g["pseudo_label"])


@pytest.mark.parametrize("name", ["sic_loss_B8_C3", "sic_loss_B64_C10"])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_loss_and_gradients_are_the_authors(name: str, beta: float) -> None:
    g, at = golden(name), f"beta{beta}_"
    method = SIC(SICConfig(name="sic", pseudo_label_weight=beta), 16, g["logits"].shape[1], 64, seed=0)
    logits, near = g["logits"].requires_grad_(), g["logits_neighbor"].requires_grad_()
    pseudo_labels = (g["image_feature"] @ g["text_center"].T).argmax(dim=1)
    assert torch.equal(pseudo_labels, g["pseudo_label"])
    loss, terms = method.loss({"logits": logits, "near_logits": near, "pseudo_labels": pseudo_labels})
    torch.testing.assert_close(loss, g[f"{at}total"], rtol=1e-9, atol=0)
    torch.testing.assert_close(terms["consistency"], g[f"{at}consistency"], rtol=1e-9, atol=0)
    torch.testing.assert_close(-5 * terms["entropy"], g[f"{at}neg_lambda_entropy"], rtol=1e-9, atol=0)
    torch.testing.assert_close(beta * terms["pseudo_labels"], g[f"{at}beta_ce"], rtol=1e-9, atol=0)
    loss.backward()
    torch.testing.assert_close(logits.grad, g[f"{at}dtotal_dlogits"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(near.grad, g[f"{at}dtotal_dlogits_neighbor"], rtol=1e-9, atol=1e-12)
    single = {"logits": logits.detach().float(), "near_logits": near.detach().float(), "pseudo_labels": pseudo_labels}
    torch.testing.assert_close(method.loss(single)[0].double(), g[f"{at}fp32_total"], rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_plain_sum_of_its_terms() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, near = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    method = SIC(SICConfig(name="sic", pseudo_label_weight=0.3), 4, 3, 60, seed=0)
    labels = torch.tensor([0, 2, 1, 1, 0])
    q = [[math.exp(float(x)) / sum(math.exp(float(y)) for y in row) for x in row] for row in logits]
    r = [[math.exp(float(x)) / sum(math.exp(float(y)) for y in row) for x in row] for row in near]
    consistency = -sum(math.log(sum(a * b for a, b in zip(x, y, strict=True))) for x, y in zip(q, r, strict=True)) / 5
    mean = [sum(row[j] for row in q) / 5 for j in range(3)]
    entropy = -sum(x * math.log(x) for x in mean)
    pseudo = -sum(math.log(row[label]) for row, label in zip(q, labels.tolist(), strict=True)) / 5
    found = method.loss({"logits": logits, "near_logits": near, "pseudo_labels": labels})[0]
    assert float(found) == pytest.approx(consistency - 5 * entropy + 0.3 * pseudo, rel=1e-12)


def groups(scale: float = 1.0) -> tuple[TrainingData, Tensor]:
    generator = torch.Generator().manual_seed(1)
    truth = torch.arange(4).repeat_interleave(40)
    images = torch.randn(4, 16, generator=generator)[truth] + 0.2 * torch.randn(160, 16, generator=generator)
    nouns = normalize(torch.randn(50, 16, generator=generator), dim=1)
    return TrainingData(torch.arange(160), (scale * normalize(images, dim=1)).half(), None, nouns), truth


@pytest.mark.long
def test_training_brings_embeddings_to_norm_ten_and_finds_plain_groups() -> None:
    data, truth = groups()
    method = SIC(SICConfig(name="sic"), 16, 4, 160, seed=0)
    history = train(method, data, find_neighbors(method, data))
    assert float(method.scale) == pytest.approx(10, rel=1e-3)
    assert history[-1]["loss"] < history[0]["loss"]
    found = method.predict(data.images).argmax(dim=1)
    assert len(torch.stack([found, truth]).unique(dim=1).T) == 4  # each group is one cluster


def test_the_scale_of_embeddings_does_not_matter() -> None:
    results = []
    for scale in (1.0, 8.0):
        data, _ = groups(scale)
        method = SIC(SICConfig(name="sic", epochs=5), 16, 4, 160, seed=0)
        train(method, data, find_neighbors(method, data))
        results.append(method.predict(data.images))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


def test_a_head_can_start_from_k_means_centers() -> None:
    data, truth = groups()
    method = SIC(SICConfig(name="sic", head_init="centers"), 16, 4, 160, seed=0)
    method.setup(data)
    found = method.predict(data.images).argmax(dim=1)
    assert len(torch.stack([found, truth]).unique(dim=1).T) == 4


def test_paper_constants_are_the_published_ones() -> None:
    small, imagenet = (SIC(SICConfig(name="sic", profile="paper"), 4, c, 4114, 0).constants for c in (100, 1000))
    keys = ("neighbors", "center_share", "center_nouns", "entropy_weight", "pseudo_label_weight", "head_init")
    assert [small[key] for key in keys] == [20, 0.9, 30, 5.0, 1.0, "random"]
    assert [imagenet[key] for key in keys] == [20, 0.5, 20, 1.0, 0.1, "centers"]
    keys = ("learning_rate", "batch_size", "epochs", "weight_decay")
    assert [small[key] for key in keys] == [1e-4, 128, 100, 1e-4]
    assert [imagenet[key] for key in keys] == [3e-4, 4096, 100, 1e-4]


def test_a_vocabulary_of_one_noun_is_an_error_that_names_the_constant() -> None:
    data, _ = groups()
    assert data.nouns is not None
    with pytest.raises(ConfigError, match=r"method\.uniqueness"):
        SIC.space(SICConfig(name="sic")).select(data.images, data.nouns[:1], 4, seed=0)
    with pytest.raises(ConfigError, match="needs nouns"):
        SIC(SICConfig(name="sic"), 16, 4, 160, seed=0).setup(TrainingData(data.row_ids, data.images))
