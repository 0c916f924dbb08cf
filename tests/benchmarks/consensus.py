"""Compare the method `consensus` with k-means and with itself without shortcuts: seconds, memory, and accuracy on real features.

    python tests/benchmarks/consensus.py --sizes 10000 100000 1000000 --clusters 100 1000 --threads 1 2
    python tests/benchmarks/consensus.py --realistic 20000 40000 --seeds 0 1 --threads 1

The first form draws rows that look like CLIP features. Each measurement runs in a process of its own. Its seconds include fitting and
labeling all rows. The CPU time of all threads together is printed too, because other work on the machine hardly changes it. Memory is the
peak of the process minus what it held before, plus the rows in float16. Consensus gets as many nouns as clusters, and 2,000 more that mean
nothing. The line of a size names the shortcuts that leave out work there.

The second form takes the labelled real features in `$RAYCLUSTER_SHARED` and jittered copies of them: rows to which the difference between
two other rows of their class is added. It prints the ACC of the fitted rows and of the others for samples of all, a half and a tenth of
the rows, and with `--exact` that of all rows without shortcuts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from clustering import features
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import normalized_mutual_info_score
from threadpoolctl import threadpool_limits

from raycluster.clustering.contingency import contingency_table, supervised_scores
from raycluster.clustering.kmeans import kmeans
from raycluster.methods.base import TrainingData
from raycluster.methods.consensus import ConsensusMethod, consensus_clusters
from raycluster.methods.consensus_algorithm import consensus
from raycluster.methods.consensus_config import NO_SHORTCUTS, SHORTCUTS, ConsensusConfig, default_sample
from raycluster.randomness import sampled
from raycluster.tables.rows import unit, vectors

SHARED = Path(os.environ.get("RAYCLUSTER_SHARED", Path(__file__).parents[2].parent / "shared"))
JITTER = 0.5
"""Factor of the differences that are added to the rows of the realistic set."""


def _data(x: np.ndarray, nouns: np.ndarray) -> TrainingData:
    return TrainingData(torch.arange(len(x)), torch.from_numpy(x), vocabulary=torch.from_numpy(nouns))


def _consensus(x: np.ndarray, nouns: np.ndarray, clusters: int) -> np.ndarray:
    return consensus_clusters(_data(x, nouns), clusters, seed=0).numpy()


def _image_only(x: np.ndarray, nouns: np.ndarray, clusters: int) -> np.ndarray:
    return consensus_clusters(TrainingData(torch.arange(len(x)), torch.from_numpy(x)), clusters, seed=0).numpy()


def _whole(x: np.ndarray, nouns: np.ndarray, clusters: int) -> np.ndarray:
    images = torch.from_numpy(unit(x))
    config = ConsensusConfig(name="consensus")
    return consensus(images, torch.from_numpy(nouns), clusters, 0, config, NO_SHORTCUTS).labels.numpy()


def _kmeans(x: np.ndarray, nouns: np.ndarray, clusters: int) -> np.ndarray:
    return kmeans(torch.from_numpy(x), clusters, seed=0).labels.numpy()


def _minibatch(x: np.ndarray, nouns: np.ndarray, clusters: int) -> np.ndarray:
    return MiniBatchKMeans(clusters, n_init=1, batch_size=4096, random_state=0).fit_predict(x.astype(np.float32))


METHODS: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "consensus": _consensus,
    "image-only": _image_only,
    "no shortcuts": _whole,
    "k-means": _kmeans,
    "minibatch": _minibatch,
}


def shortcuts(rows: int, dim: int, clusters: int, nouns: int) -> list[str]:
    """The shortcuts of consensus that leave out work for so many rows, dimensions, clusters and nouns."""
    limits, fitted, fine = SHORTCUTS, min(rows, default_sample(clusters)), 4 * clusters
    sizes = {
        f"sample {fitted}": (rows, fitted),
        f"metric from {limits.metric_queries} rows": (fitted, limits.metric_queries),
        f"{limits.dims} dimensions": (dim, limits.dims),
        f"search among {limits.candidates} rows": (fitted, limits.exact_rows),
        f"{limits.nouns} nouns": (nouns, limits.nouns),
        "small clusters in two levels": (fine, limits.split_above),
        f"k-means on {limits.fine_rows} rows a center": (
            fitted if fine <= limits.split_above else 0,
            limits.fine_rows * fine,
        ),
        f"last steps on {limits.last_rows} rows a cluster": (fitted, limits.last_rows * clusters),
    }
    return [name for name, (have, limit) in sizes.items() if have > limit]


def realistic(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit rows [n, 512] float32 of real images and jittered copies of them, their classes, and unit nouns [m, 512] float32."""
    draw, parts, classes = np.random.default_rng(seed), [], []
    for name in ("caltech101", "oxford_pets"):
        table = pq.read_table(SHARED / "features" / f"{name}.parquet")
        labels = np.array([name + str(label) for label in table.column("label").to_pylist()])
        known = np.array([label is not None and label != -1 for label in table.column("label").to_pylist()])
        parts.append(unit(vectors(table))[known])
        classes.append(labels[known])
    x, own = np.concatenate(parts), np.unique(np.concatenate(classes), return_inverse=True)[1]
    order, counts = np.argsort(own, kind="stable"), np.bincount(own)
    starts = np.cumsum(counts) - counts

    def another(classes: np.ndarray) -> np.ndarray:
        return order[starts[classes] + (draw.random(len(classes)) * counts[classes]).astype(int)]

    copies = np.resize(np.arange(len(x)), rows)
    jittered = x[copies] + JITTER * (x[another(own[copies])] - x[another(own[copies])])
    jittered[: len(x)] = x[: min(rows, len(x))]
    nouns = np.unique(unit(vectors(pq.read_table(SHARED / "features" / "nouns.parquet"))), axis=0)
    return unit(jittered).astype(np.float32), own[copies], nouns


def compare_samples(rows: int, seed: int, exact: bool) -> None:
    """Print the scores of consensus on the realistic set, fitted to all rows, to a half and to a tenth of them."""
    x, own, nouns = realistic(rows)
    clusters, data = int(own.max()) + 1, _data(x, nouns)

    def scores(found: np.ndarray, part: np.ndarray) -> str:
        table = supervised_scores(contingency_table(own[part], found[part]))
        return " / ".join(f"{100 * (table[name] or 0):.1f}" for name in ("acc", "nmi", "ari"))

    for name, size, limits in [
        *([("exact", rows, NO_SHORTCUTS)] if exact else []),
        ("all", rows, SHORTCUTS),
        ("1/2", rows // 2, SHORTCUTS),
        ("1/10", rows // 10, SHORTCUTS),
    ]:
        start = time.process_time()
        ids = sampled(np.arange(rows), size, seed)
        method = ConsensusMethod(ConsensusConfig(name="consensus"), x.shape[1], clusters, size, seed)
        method.fit(TrainingData(torch.from_numpy(ids), data.images[ids], vocabulary=data.vocabulary), limits)
        found = torch.cat([method.predict(part).argmax(dim=1) for part in data.images.split(16_384)]).numpy()
        fitted = np.isin(np.arange(rows), ids)
        print(
            f"{rows} x {clusters} seed {seed} fitted {name:5} CPU {time.process_time() - start:6.1f} s  "
            f"all {scores(found, fitted | True)}  fitted {scores(found, fitted)}"
            + (f"  others {scores(found, ~fitted)}" if not fitted.all() else ""),
            flush=True,
        )


def one(name: str, rows: int, dim: int, clusters: int, threads: int) -> dict[str, float]:
    """Seconds, MiB, and the normalized mutual information with the classes that the rows were drawn from."""
    torch.set_num_threads(threads)
    x, classes = features(rows, dim, clusters)
    draw = np.random.default_rng(1)
    means = np.stack([x[classes == c].mean(axis=0) if (classes == c).any() else x[c] for c in range(clusters)])
    nouns = np.concatenate([means, draw.standard_normal((2000, dim)) / dim**0.5 + means.mean(axis=0)])
    nouns = (nouns / np.linalg.norm(nouns, axis=1, keepdims=True)).astype(np.float32)
    x = x.astype(np.float16)
    before, start, cpu = _memory(), time.perf_counter(), time.process_time()
    with threadpool_limits(threads):
        labels = METHODS[name](x, nouns, clusters)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": seconds,
        "cpu": time.process_time() - cpu,
        "mib": peak - before + x.nbytes / 2**20,
        "nmi": normalized_mutual_info_score(classes, labels),
    }


def _memory() -> float:
    """MiB of memory in use now. The peak so far is reset, so that making the rows does not count."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print a line for each method, size and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--clusters", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    default = [name for name in METHODS if name != "no shortcuts"]
    parser.add_argument("--methods", nargs="+", default=default, choices=list(METHODS))
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--realistic", type=int, nargs="+", help="sizes of the realistic set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--exact", action="store_true", help="also without shortcuts")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.sizes[0], options.dim, options.clusters[0], options.threads[0])))
        return
    if options.realistic:
        torch.set_num_threads(options.threads[0])
        for rows in options.realistic:
            for seed in options.seeds:
                compare_samples(rows, seed, options.exact)
        return
    for rows in options.sizes:
        for clusters in options.clusters:
            bite = shortcuts(rows, options.dim, clusters, 2000 + clusters)
            print(f"{rows} x {options.dim}, C {clusters}, shortcuts: {', '.join(bite) or 'none'}")
            for threads in options.threads:
                for name in options.methods:
                    command = [sys.executable, __file__, "--one", name, "--sizes", str(rows), "--dim", str(options.dim)]
                    command += ["--clusters", str(clusters), "--threads", str(threads)]
                    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                    print(
                        f"  {threads} threads  {name:12} {found['seconds']:8.1f} s  (CPU {found['cpu']:8.1f} s)  "
                        f"{found['mib']:7.0f} MiB  NMI {found['nmi']:.3f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
