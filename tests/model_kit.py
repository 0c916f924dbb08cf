"""A small model folder without any run: k-means of random embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from raycluster.config import MethodConfig
from raycluster.methods import registry
from raycluster.methods.base import FittedMethod, TrainingData
from raycluster.model.files import save_model
from raycluster.model.model import make_memory
from raycluster.storage.location import locate

CLUSTERS, DIM, ROWS = 3, 96, 40
PROVIDED = {"config": None, "precision": None, "fingerprint": "provided"}


def small_model(
    folder: Path, encoder: dict[str, Any] | None = None, more: dict[str, bytes] | None = None, **facts: Any
) -> Path:
    """Write a model folder. `encoder` is by default that of ready-made embeddings; `more` are further files, and `facts` further keys."""
    images = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0)).half()
    method = registry.build(MethodConfig(name="kmeans"), DIM, CLUSTERS, ROWS, seed=0)
    assert isinstance(method, FittedMethod)
    method.fit(TrainingData(torch.arange(ROWS), images))
    clusters = [{"name": f"cluster {number}", "nouns": []} for number in range(CLUSTERS)]
    facts = {"seed": 0, "training": {"history": []}, **facts}
    memory, _ = make_memory(method, images.numpy())
    save_model(locate(str(folder)), method, memory, encoder or PROVIDED, clusters, facts, more)
    return folder
