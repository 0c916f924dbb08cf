"""Measure the scores of every method on real CLIP features, beside those that the authors' code reaches on them.

    python tests/benchmarks/quality.py --features <folder> [--profile paper] [--seeds 5] [--sets …] [--methods …] [--label-free]

The folder holds `<set>.parquet` (image_id, embedding, label: null where unknown) and `nouns.parquet`. Each method is trained
without labels on all rows, and the model of the last epoch is scored by its predictions for the labeled rows. TAC without training is
fitted on the labeled rows only, as the reference was. `--label-free` prints nothing that needs a label; the default rule was chosen with it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import normalized_mutual_info_score

from raycluster.clustering.contingency import supervised_scores
from raycluster.clustering.scores import label_free_scores
from raycluster.config import MethodConfig
from raycluster.methods import registry
from raycluster.methods.base import FittedMethod, TrainedMethod, TrainingData
from raycluster.methods.consensus import consensus_clusters
from raycluster.model.prediction import probabilities, top_two
from raycluster.results.evaluate import count_labels
from raycluster.tables.rows import unit, vectors
from raycluster.training.loop import History, find_neighbors, train

SETS = {"caltech101": 100, "oxford_pets": 37}
METHODS: dict[str, dict[str, Any]] = {
    "consensus": {"name": "consensus"},
    "image-only": {"name": "consensus", "text_weight": 0.0},
    "kmeans": {"name": "kmeans"},
    "tac-free": {"name": "tac", "trained": False},
    "tac": {"name": "tac"},
    "dxmc": {"name": "dxmc"},
    "sic": {"name": "sic"},
    "seic": {"name": "seic"},
}
REFERENCE = {
    "caltech101": {
        "consensus": (74.4, 0.3, 91.6, 63.0),
        "image-only": (72.8, 0.3, 91.3, 61.7),
        "kmeans": (56.6, 2.0, 85.1, 41.5),
        "tac-free": (61.0, 2.7, 86.8, 44.3),
        "tac": (57.0, 0.7, 85.1, 37.9),
        "dxmc": (39.4, 0.6, 72.6, 31.1),
        "sic": (58.3, 1.8, 86.1, 41.4),
        "seic": (60.9, 0.6, 82.9, 48.7),
    },
    "oxford_pets": {
        "consensus": (74.5, 1.6, 84.0, 67.8),
        "image-only": (66.4, 1.6, 80.9, 61.6),
        "kmeans": (47.8, 2.3, 64.1, 38.8),
        "tac-free": (62.2, 1.6, 76.6, 53.1),
        "tac": (73.7, 2.2, 79.9, 63.5),
        "dxmc": (65.9, 3.0, 77.7, 57.2),
        "sic": (59.4, 0.3, 75.4, 52.8),
        "seic": (51.4, 3.8, 73.2, 41.8),
    },
}
"""ACC, its standard deviation over 2 to 3 seeds, NMI and ARI of the authors' code. For SEIC the code is an independent re-implementation,
and for consensus it is an experimental version of ours."""


def one_run(features: Path, name: str, method: dict[str, Any], seed: int, unseen: float) -> dict[str, Any]:
    """Train one method on one set; return its scores and label-free measures.

    If `unseen` is not 0, this share of the rows is left out of the training, and only these rows are measured.
    """
    torch.set_num_threads(1)
    table, nouns = (pq.read_table(features / f"{file}.parquet") for file in (name, "nouns"))
    labels = table.column("label").to_pylist()
    labelled = np.array([label is not None for label in labels])
    images = vectors(table)
    held = np.random.default_rng(seed).random(len(images)) < unseen
    words = torch.from_numpy(unit(vectors(nouns))).unique(dim=0)
    started, clusters = time.perf_counter(), SETS[name]
    config = registry.configure(MethodConfig.model_validate(method))
    space, x = registry.space(config), torch.from_numpy(images.copy())
    kept = words[space.select(x[~held], words, clusters, seed)]
    paired = space.pair(x, kept).half()
    fitted = ~held & (labelled if method["name"] == "tac" and not method.get("trained", True) else True)
    data = TrainingData(torch.arange(int(fitted.sum())), x[fitted], paired[fitted], kept, words)
    built = registry.build(config, x.shape[1], clusters, len(data.images), seed)
    history: History = []
    if isinstance(built, FittedMethod):
        built.fit(data)
    elif isinstance(built, TrainedMethod):
        if built.config.init == "consensus":
            data = replace(data, consensus=consensus_clusters(data, clusters, seed))
        history = train(built, data, find_neighbors(built, data))
    seconds = time.perf_counter() - started
    shown = held if unseen else np.ones(len(x), bool)
    everywhere = top_two(probabilities(built, images))
    found, confidence, margin = (values[shown] for values in everywhere[:3])
    free = label_free_scores(images[shown], paired.numpy()[shown], found, confidence, margin, clusters)
    own = pa.chunked_array([pa.array(labels).cast(pa.string()).filter(pa.array(shown))])
    scores = supervised_scores(count_labels(own, found, clusters).table)
    if unseen:
        scores["acc"] = unseen_accuracy(labels, everywhere[0], held)
    losses = [epoch["loss"] for epoch in history]
    tail = losses[-max(2, len(losses) // 5) :] if losses else [0.0, 0.0]
    return {
        **{key: scores[key] for key in ("acc", "nmi", "ari")},
        **free,
        "used": len(np.unique(found)),
        # How far the loss falls in the last fifth of the epochs, as a share of its whole range. Near 0, the training was long enough.
        "still falling": (tail[0] - tail[-1]) / max(1e-9, max(losses) - min(losses)) if losses else 0.0,
        # Each seed leaves other rows unseen, so their clusters cannot be compared between seeds.
        "clusters": None if unseen else found,
        "seconds": seconds,
    }


def unseen_accuracy(labels: list[str | None], clusters: np.ndarray, held: np.ndarray) -> float:
    """Accuracy on the rows `held`. Clusters are matched to classes on the other rows, because a matching on few rows looks too good."""
    known = np.array([label is not None for label in labels])
    truth = np.unique([str(label) for label in labels], return_inverse=True)[1]
    table = np.zeros((int(clusters.max()) + 1, int(truth.max()) + 1), int)
    np.add.at(table, (clusters[known & ~held], truth[known & ~held]), 1)
    matched = dict(zip(*linear_sum_assignment(table, maximize=True), strict=True))
    hits = [
        matched.get(cluster) == label
        for cluster, label in zip(clusters[known & held], truth[known & held], strict=True)
    ]
    return float(np.mean(hits))


def percent(values: list[float]) -> str:
    """Mean ± standard deviation."""
    return f"{100 * statistics.mean(values):5.1f}±{100 * _stdev(values):3.1f}"


def report(name: str, method: str, runs: list[dict[str, Any]], label_free: bool) -> str:
    """One line of the table."""
    line = f"{name:12} {method:9}"
    if not label_free:
        acc, std, nmi, ari = REFERENCE[name][method]
        mean, spread = (f([100 * run["acc"] for run in runs]) for f in (statistics.mean, _stdev))
        bound = max(2.0, 2 * (std**2 / 3 + spread**2 / len(runs)) ** 0.5)
        verdict = "below" if mean < acc - bound else "above" if mean > acc + bound else "within"
        line += " / ".join(percent([run[key] for run in runs]) for key in ("acc", "nmi", "ari"))
        line += f"  reference {acc:.1f}±{std} / {nmi} / {ari} ({verdict} {bound:.1f})"
        line += "  seeds " + " ".join(f"{100 * run['acc']:.1f}" for run in runs)
    found = [run["clusters"] for run in runs if run["clusters"] is not None]
    agreement = [normalized_mutual_info_score(a, b) for a, b in combinations(found, 2)]
    measures = {key: statistics.mean(run[key] for run in runs) for key in FREE}
    line += "  " + "  ".join(f"{short} {measures[key]:.3f}" for key, short in FREE.items())
    line += f"  seeds agree {statistics.mean(agreement):.3f}" if agreement else ""
    return line + f"  {statistics.mean(run['seconds'] for run in runs):.0f} s"


def _init(method: dict[str, Any], init: str) -> dict[str, Any]:
    trained = method["name"] not in ("kmeans", "consensus") and method.get("trained", True)
    return {"init": init} if trained else {}


def _stdev(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


FREE = {
    "used": "used",
    "imbalance": "imbalance",
    "neighborhood_consistency": "consistency",
    "image_text_agreement": "image/text",
    "confidence": "confidence",
    "silhouette": "silhouette",
    "still falling": "still falling",
}


def main() -> None:
    """Print a line for each set and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--profile", default="default", choices=["default", "paper"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--set", nargs="+", default=[], metavar="constant=value", help="constants of the method")
    parser.add_argument("--label-free", action="store_true")
    parser.add_argument("--init", default="own", choices=["own", "consensus"], help="of the trained methods")
    parser.add_argument(
        "--unseen", type=float, default=0.0, help="share of the rows that the method never sees, and is scored on"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    options = parser.parse_args()
    constants = {
        key: float(value) if "." in value or "e" in value else int(value)
        for key, value in (pair.split("=") for pair in options.set)
    }
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        jobs = {
            (name, method): [
                pool.submit(
                    one_run,
                    options.features,
                    name,
                    {
                        **METHODS[method],
                        "profile": options.profile,
                        **constants,
                        **_init(METHODS[method], options.init),
                    },
                    seed,
                    options.unseen,
                )
                for seed in range(options.seeds)
            ]
            for name in options.sets
            for method in options.methods
        }
        for (name, method), futures in jobs.items():
            print(report(name, method, [future.result() for future in futures], options.label_free), flush=True)


if __name__ == "__main__":
    main()
