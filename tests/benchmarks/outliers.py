"""Measure how often foreign pictures are flagged, and known ones by mistake: our rule beside others, on real CLIP features.

    python tests/benchmarks/outliers.py --features <folder> [--seeds 5]

The folder holds `caltech101.parquet` and `oxford_pets.parquet` (image_id, embedding, label: null where unknown). Of one set, 80 % of the rows
are the training set and the others are the known rows. The foreign rows are those of the other set, or those of the half of the classes
that was left out. Each line has the area under the ROC curve, and the share of the foreign rows that is flagged. The limit for this flags
exactly 1 % of the known rows. Nobody knows this limit in practice, so the last two lines use the limit that is stored with a model.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.clustering.whitening import class_means
from raycluster.config import MethodConfig
from raycluster.methods import registry
from raycluster.methods.base import FittedMethod, TrainingData
from raycluster.model.novelty import FALSE_RATE, fit_novelty
from raycluster.tables.rows import vectors

SETS = {"caltech101": 100, "oxford_pets": 37}


def fitted(name: str, images: Tensor, clusters: int) -> FittedMethod:
    """A method fitted to the training set, without nouns."""
    config = registry.configure(MethodConfig(name=name))
    method = registry.build(config, images.shape[1], clusters, len(images), 0)
    assert isinstance(method, FittedMethod)
    method.fit(TrainingData(torch.arange(len(images)), images))
    return method


def distances(rows: Tensor, means: Tensor, precision: Tensor) -> Tensor:
    """Squared Mahalanobis distance of each row to the nearest mean."""
    crossed = rows @ precision
    squares = (crossed * rows).sum(1, keepdim=True) - 2 * crossed @ means.T + ((means @ precision) * means).sum(1)
    return squares.min(dim=1).values


def precision(deviations: Tensor) -> Tensor:
    """Inverse of the shrunk covariance (Ledoit and Wolf 2004)."""
    return torch.from_numpy(np.linalg.inv(ledoit_wolf(deviations.numpy(), assume_centered=True)[0])).float()


def strangeness(images: Tensor, tests: tuple[Tensor, ...], clusters: int) -> Iterator[tuple[str, list[Tensor]]]:
    """For each rule, its name and a number for each row of the tests, which is larger the stranger the row is."""
    unit = normalize(images.float(), dim=1)
    asked = [normalize(test.float(), dim=1) for test in tests]
    for name in ("kmeans", "consensus"):
        method = fitted(name, images, clusters)
        yield f"cosine to the centers, {name}", [-method.logits(rows).detach().amax(1) for rows in asked]
        yield f"largest probability, {name}", [-method.predict(rows).amax(1) for rows in asked]
    labels = method.logits(unit).detach().argmax(1)
    means, mean = class_means(unit, labels, clusters), unit.mean(dim=0, keepdim=True)
    within, overall = precision(unit - means[labels]), precision(unit - mean)
    used = means[torch.bincount(labels, minlength=clusters) > 0]
    near = [distances(rows, used, within) for rows in asked]
    yield "Mahalanobis (Lee et al. 2018)", near
    relative = [own - distances(rows, mean, overall) for own, rows in zip(near, asked, strict=True)]
    yield "relative Mahalanobis (Ren et al. 2021)", relative
    for k in (1, 2, 5, 10):
        yield f"neighbor {k}", [-(rows @ unit.T).topk(k).values[:, -1] for rows in asked]
    some = unit[torch.randperm(len(unit), generator=torch.Generator().manual_seed(0))[:512]]
    yield "neighbor 2 of 512 stored rows", [-(rows @ some.T).topk(2).values[:, -1] for rows in asked]


def splits(folder: Path, seed: int) -> Iterator[tuple[str, Tensor, Tensor, Tensor, int]]:
    """For each split, its name, training rows, known rows, foreign rows, and number of clusters."""
    tables = {name: pq.read_table(folder / f"{name}.parquet") for name in SETS}
    features = {name: torch.from_numpy(vectors(table.combine_chunks()).copy()) for name, table in tables.items()}
    rng = np.random.default_rng(seed)
    for name, other in (tuple(SETS), tuple(SETS)[::-1]):
        order = rng.permutation(len(features[name]))
        cut = int(0.8 * len(order))
        yield f"{name}, foreign {other}", *(features[name][part] for part in (order[:cut], order[cut:])), features[other], SETS[name]  # fmt: skip
        labels = np.array(tables[name]["label"].to_pylist(), object)
        classes = rng.permutation(sorted({label for label in labels if label is not None}))
        kept = np.isin(labels, classes[: len(classes) // 2].tolist())
        left_out = np.isin(labels, classes[len(classes) // 2 :].tolist())
        order = rng.permutation(np.flatnonzero(kept))
        cut = int(0.8 * len(order))
        yield f"{name}, foreign half its classes", *(features[name][part] for part in (order[:cut], order[cut:], np.flatnonzero(left_out))), len(classes) // 2  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for seed in range(given.seeds):
        for split, images, known, foreign, clusters in splits(given.features, seed):
            for rule, (inside, outside) in strangeness(images, (known, foreign), clusters):
                truth = np.repeat([0, 1], [len(inside), len(outside)])
                area = roc_auc_score(truth, torch.cat([inside, outside]).numpy())
                recall = (outside > inside.quantile(1 - FALSE_RATE)).float().mean().item()
                found.setdefault((split, rule), []).append((area, recall))
            novelty = fit_novelty(images)
            noise = torch.randn(1000, images.shape[1], generator=torch.Generator().manual_seed(seed))
            shares = [novelty.flags(rows).float().mean().item() for rows in (known, foreign, noise)]
            found.setdefault((split, "as stored: known flagged, foreign flagged"), []).append((shares[0], shares[1]))
            found.setdefault((split, "as stored: expected, noise flagged"), []).append((novelty.expected, shares[2]))
    shown = ""
    for (split, rule), values in found.items():
        if split != shown:
            print(f"\n{split}")
            shown = split
        numbers = "   ".join(
            f"{mean:.3f}±{std:.3f}" for mean, std in zip(np.mean(values, 0), np.std(values, 0), strict=True)
        )
        print(f"  {rule:42s} {numbers}")


if __name__ == "__main__":
    main()
