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
