"""Test the contrastive losses and the entropy against the authors' values and against plain loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from raycluster.methods.losses.entropy import mean_assignment_entropy
from raycluster.methods.losses.nt_xent import cluster_contrast, nt_xent

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]).double() for key in file.files}


@pytest.mark.parametrize("name", ["tac_losses_B8_C3", "tac_losses_B64_C10"])
@pytest.mark.parametrize("temperature", [0.5, 5.0])
def test_cluster_contrast_and_entropy_are_the_authors(name: str, temperature: float) -> None:
    g = load(name)
    logits = {key: g[f"logits_{key}"].requires_grad_() for key in ("image", "text", "neigh_image", "neigh_text")}
    p = {key: value.softmax(dim=1) for key, value in logits.items()}
    first = cluster_contrast(p["image"], p["neigh_text"], temperature)
    second = cluster_contrast(p["text"], p["neigh_image"], temperature)
    entropies = mean_assignment_entropy(p["text"]), mean_assignment_entropy(p["image"])
    consistency = -(p["text"] * p["image"]).sum(dim=1).log().mean()
    total = first + second + consistency - g["alpha"] * (entropies[0] + entropies[1])
    at = f"tau{temperature}_"
    torch.testing.assert_close(first, g[f"{at}distill_image_neightext"], rtol=1e-9, atol=0)
    torch.testing.assert_close(second, g[f"{at}distill_text_neighimage"], rtol=1e-9, atol=0)
    torch.testing.assert_close(entropies[0], g[f"{at}entropy_text"], rtol=1e-9, atol=0)
    torch.testing.assert_close(entropies[1], g[f"{at}entropy_image"], rtol=1e-9, atol=0)
    torch.testing.assert_close(total, g[f"{at}total"], rtol=1e-9, atol=0)
    total.backward()
    for key, value in logits.items():
        torch.testing.assert_close(value.grad, g[f"{at}dtotal_dlogits_{key}"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["dxmc_instance_loss_B8_D16", "dxmc_instance_loss_B64_D32"])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_instance_loss_is_the_authors(name: str, temperature: float) -> None:
    g = load(name)
    text, image = g["z_text"].requires_grad_(), g["z_image"].requires_grad_()
    loss = nt_xent(text, image, temperature)
    torch.testing.assert_close(loss, g[f"tau{temperature}_loss"], rtol=1e-9, atol=0)
    loss.backward()
    torch.testing.assert_close(text.grad, g[f"tau{temperature}_dloss_dz_text"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(image.grad, g[f"tau{temperature}_dloss_dz_image"], rtol=1e-9, atol=1e-12)


def test_nt_xent_is_the_plain_double_loop() -> None:
    a, b = (torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(2))
    rows, total = [*a, *b], 0.0
    for i in range(10):
        scores = {j: math.exp(float(rows[i] @ rows[j]) / 0.7) for j in range(10) if j != i}
        total -= math.log(scores[(i + 5) % 10] / sum(scores.values()))
    assert float(nt_xent(a, b, 0.7)) == pytest.approx(total / 10, rel=1e-12)


def test_an_empty_cluster_gives_no_nan() -> None:
    p = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    loss = cluster_contrast(p, p.detach(), 0.5) - mean_assignment_entropy(p)
    loss.backward()
    assert torch.isfinite(loss)
    assert p.grad is not None
    assert float(mean_assignment_entropy(torch.full((4, 3), 1 / 3))) == pytest.approx(math.log(3))


def test_a_confident_batch_in_single_precision_keeps_a_finite_gradient() -> None:
    logits = torch.tensor([[60.0, 0.0, -60.0], [0.0, 60.0, -60.0]], requires_grad=True)
    p = logits.softmax(dim=1)
    (cluster_contrast(p, p, 0.2) - 5 * mean_assignment_entropy(p)).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def plain_contrast(p: Tensor, q: Tensor, temperature: float) -> float:
    """The loss column by column. The partner is the same cluster of the other matrix, and the 2C - 2 other columns are negatives."""
    c = p.shape[1]
    columns = [column / column.norm() for matrix in (p, q) for column in matrix.T]
    total = 0.0
    for i in range(2 * c):
        partner = (i + c) % (2 * c)
        positive = math.exp(float(columns[i] @ columns[partner]) / temperature)
        others = [j for j in range(2 * c) if j not in (i, partner)]
        negative = sum(math.exp(float(columns[i] @ columns[j]) / temperature) for j in others)
        total -= math.log(positive / (positive + negative))
    return total / (2 * c)


@pytest.mark.parametrize(("rows", "clusters", "temperature"), [(7, 2, 0.2), (12, 5, 0.5), (3, 9, 5.0)])
def test_cluster_contrast_is_the_plain_double_loop(rows: int, clusters: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(rows)
    p, q = (torch.randn(rows, clusters, dtype=torch.float64, generator=generator).softmax(dim=1) for _ in range(2))
    expected = plain_contrast(p, q, temperature)
    assert float(cluster_contrast(p, q, temperature)) == pytest.approx(expected, rel=1e-12)
    assert float(cluster_contrast(q, p, temperature)) == pytest.approx(expected, rel=1e-12)
    # If each worker computed the loss of its share, the average would be another loss.
    if rows % 2 == 0:
        halves = [float(cluster_contrast(p[half::2], q[half::2], temperature)) for half in range(2)]
        assert sum(halves) / 2 != pytest.approx(expected, rel=1e-3)


def test_entropy_is_the_plain_sum() -> None:
    p = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    means = [float(column.sum()) / 6 for column in p.T]
    expected = -sum(mean * math.log(mean) for mean in means)
    assert float(mean_assignment_entropy(p)) == pytest.approx(expected, rel=1e-12)


def test_gradients_are_the_numerical_ones() -> None:
    generator = torch.Generator().manual_seed(5)
    a, b = (torch.randn(4, 3, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), (a, b))
    assert torch.autograd.gradcheck(lambda a, b: cluster_contrast(a.softmax(1), b.softmax(1), 0.5), (a, b))
    assert torch.autograd.gradcheck(lambda a: mean_assignment_entropy(a.softmax(1)), (a,))


@pytest.mark.parametrize("name", ["tac_losses_B8_C3", "tac_losses_B64_C10"])
def test_single_precision_is_close_enough(name: str) -> None:
    g = load(name)
    p, q, near_p, near_q = (
        g[f"logits_{key}"].float().softmax(dim=1) for key in ("text", "image", "neigh_text", "neigh_image")
    )
    torch.testing.assert_close(
        cluster_contrast(q, near_p, 0.5).double(), g["tau0.5_distill_image_neightext"], rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        cluster_contrast(p, near_q, 0.5).double(), g["tau0.5_distill_text_neighimage"], rtol=1e-5, atol=0
    )
    torch.testing.assert_close(mean_assignment_entropy(p).double(), g["tau0.5_entropy_text"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_exactly_empty_column_has_finite_loss_and_gradients(dtype: torch.dtype) -> None:
    p = torch.tensor([[0.7, 0.3, 0.0], [0.2, 0.8, 0.0]], dtype=dtype, requires_grad=True)
    q = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.9, 0.0]], dtype=dtype, requires_grad=True)
    loss = cluster_contrast(p, q, 0.05) - mean_assignment_entropy(p)
    loss.backward()
    assert torch.isfinite(loss)
    assert p.grad is not None
    assert q.grad is not None
    assert torch.isfinite(p.grad).all()
    assert torch.isfinite(q.grad).all()
