"""Compare k-means and nearest neighbors with faiss and scikit-learn, on rows that look like CLIP features.

    python tests/benchmarks/clustering.py --sizes 10000 30000 100000 --dim 512 --clusters 1000

All libraries run in turns in one process with the same number of threads, and medians are reported. For k-means the script prints the
seconds and the objective (mean cosine) of runs with the same limit on iterations. It also prints the seconds that each library needs to
come within 1 % of the best objective of all: those of its shortest run that gets there, out of runs of at most 1, 2, 3, 5, 8, 12, 18 and
25 iterations. For nearest neighbors it prints the seconds, and the share of neighbors that both libraries find. Exponents are slopes of
log time over log N of our code. Peak memory is that of a fresh process that runs only our code, minus what it held before.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits

from raycluster.clustering.kmeans import kmeans
from raycluster.clustering.neighbors import nearest_neighbors

BUDGETS = (1, 2, 3, 5, 8, 12, 18, 25)
NEIGHBORS = 50


def features(n: int, dim: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows [n, dim] float32 and their classes [n].

    The classes are of unequal size and lie in groups of ten, all within one cone. The spread of their rows has a falling spectrum.
    """
    draw = np.random.default_rng(seed)

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    spectrum = np.arange(1, dim + 1) ** -0.4
    groups = unit(draw.standard_normal((max(1, classes // 10), dim)) * spectrum)
    means = unit(draw.standard_normal((classes, dim)) * spectrum)
    means = unit(unit(draw.standard_normal(dim)) + 0.8 * groups[np.arange(classes) % len(groups)] + 0.8 * means)
    shares = draw.lognormal(0, 0.7, classes)
    own = draw.choice(classes, n, p=shares / shares.sum())
    x = np.empty((n, dim), np.float32)
    for start in range(0, n, 10_000):
        part = own[start : start + 10_000]
        # A spread of 0.88 gives a mean cosine of about 0.75 between a row and its class mean.
        noise = unit(draw.standard_normal((len(part), dim)) * spectrum) * 0.88
        x[start : start + 10_000] = unit(means[part] + noise)
    return x, own


def mean_cosine(x: np.ndarray, centers: np.ndarray) -> float:
    """The objective of k-means, computed the same way for all libraries."""
    unit = torch.nn.functional.normalize(torch.from_numpy(np.asarray(centers, np.float32)), dim=1)
    parts = [(rows @ unit.T).amax(dim=1).double().sum() for rows in torch.from_numpy(x).split(16384)]
    return float(sum(parts)) / len(x)


def _ours(x: np.ndarray, k: int, iterations: int, seed: int) -> np.ndarray:
    return kmeans(torch.from_numpy(x), k, seed=seed, max_iterations=iterations).centers.numpy()


def _faiss(x: np.ndarray, k: int, iterations: int, seed: int) -> np.ndarray:
    found = faiss.Kmeans(x.shape[1], k, niter=iterations, spherical=True, seed=1 + seed, min_points_per_centroid=1)
    found.train(x)
    # Our k-means returns a label for each row, but faiss only a trained index, so finding the labels is timed too.
    found.index.search(x, 1)
    return found.centroids


def _sklearn(x: np.ndarray, k: int, iterations: int, seed: int) -> np.ndarray:
    return KMeans(k, n_init=1, max_iter=iterations, random_state=seed).fit(x).cluster_centers_


def _minibatch(x: np.ndarray, k: int, iterations: int, seed: int) -> np.ndarray:
    found = MiniBatchKMeans(k, n_init=1, max_iter=iterations, batch_size=4096, random_state=seed, compute_labels=True)
    return found.fit(x).cluster_centers_


KMEANS = {"ours": _ours, "faiss": _faiss, "sklearn": _sklearn, "minibatch": _minibatch}


def _timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def compare_kmeans(x: np.ndarray, k: int, iterations: int, repeats: int, names: list[str]) -> dict[str, float]:
    """Print median seconds and objectives of the full budget, then the seconds to an equal objective; return our seconds by name."""
    runs: dict[tuple[str, int], list[tuple[float, float]]] = {}

    def measure(name: str, budget: int, seed: int) -> None:
        seconds, centers = _timed(lambda: KMEANS[name](x, k, budget, seed))
        runs.setdefault((name, budget), []).append((seconds, mean_cosine(x, centers)))

    def medians(name: str, budget: int) -> tuple[float, float]:
        seconds, objectives = zip(*runs[name, budget], strict=True)
        return statistics.median(seconds), statistics.median(objectives)

    for seed in range(repeats):
        for name in names:
            measure(name, iterations, seed)
    ours = medians("ours", iterations)[0]
    for name in names:
        seconds, objective = medians(name, iterations)
        print(
            f"  k-means {name:9} {seconds:8.2f} s  objective {objective:.4f}  x{seconds / ours:.2f} of ours", flush=True
        )
    target = 0.99 * max(objective for found in runs.values() for _, objective in found)
    reached = {}
    for name in names:
        for budget in [b for b in BUDGETS if b < iterations] + [iterations]:
            if budget != iterations:
                measure(name, budget, 0)
                # Only a budget whose first run reaches the target is worth repeating.
                for seed in range(1, repeats) if medians(name, budget)[1] >= target else ():
                    measure(name, budget, seed)
            seconds, objective = medians(name, budget)
            if objective >= target:
                reached[name] = seconds
                print(
                    f"  to {target:.4f} {name:9} {seconds:8.2f} s  ({budget} iterations, {objective:.4f})", flush=True
                )
                break
        else:
            print(f"  to {target:.4f} {name:9} not reached", flush=True)
    return {"k-means": ours} | ({"k-means to equal objective": reached["ours"]} if "ours" in reached else {})


def compare_neighbors(x: np.ndarray, repeats: int) -> dict[str, float]:
    """Print the median seconds of an exact search for the neighbors of all rows; return our seconds by name."""

    def flat() -> np.ndarray:
        index = faiss.IndexFlatIP(x.shape[1])
        index.add(x)
        return index.search(x, NEIGHBORS + 1)[1]

    def ours() -> np.ndarray:
        return nearest_neighbors(torch.from_numpy(x), NEIGHBORS + 1, include_self=True).numpy()

    times: dict[str, list[float]] = {"ours": [], "faiss": []}
    for _ in range(repeats):
        for name, work in (("ours", ours), ("faiss", flat)):
            seconds, found = _timed(work)
            times[name].append(seconds)
            if name == "ours":
                mine = found
    same = statistics.mean(len(np.intersect1d(a, b)) / len(b) for a, b in zip(mine[::97], found[::97], strict=True))
    ratio = statistics.median(b / a for a, b in zip(times["ours"], times["faiss"], strict=True))
    for name, seconds in times.items():
        print(f"  neighbors {name:7} {statistics.median(seconds):8.2f} s  ({', '.join(f'{s:.2f}' for s in seconds)})")
    print(f"  neighbors: faiss takes x{ratio:.2f} of ours; {same:.4%} of the neighbors agree", flush=True)
    return {"neighbors": statistics.median(times["ours"])}


def peak_memory(n: int, options: argparse.Namespace, what: str) -> float:
    """MiB that our code takes in addition to the rows, in a process of its own."""
    command = [sys.executable, __file__, "--dim", str(options.dim), "--clusters", str(options.clusters)]
    command += ["--threads", str(options.threads), "--sizes", str(n), "--memory-of", what]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _memory_of(what: str, x: np.ndarray, k: int, iterations: int) -> float:
    # The peak is reset, so that the memory for drawing the rows does not count.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    if what == "kmeans":
        _ours(x, k, iterations, 0)
    else:
        nearest_neighbors(torch.from_numpy(x), NEIGHBORS)
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument(
        "--skip", nargs="*", default=[], choices=["sklearn", "minibatch", "faiss", "kmeans", "neighbors"]
    )
    parser.add_argument("--memory-of", choices=["kmeans", "neighbors"], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print what was measured."""
    options = _parse()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    with threadpool_limits(options.threads):
        if options.memory_of:
            x, _ = features(options.sizes[0], options.dim, options.clusters)
            print(_memory_of(options.memory_of, x, options.clusters, options.iterations))
            return
        print(
            f"{options.threads} threads, torch {torch.__version__}, faiss {faiss.__version__}, {options.clusters} clusters"
        )
        taken: dict[str, list[tuple[int, float]]] = {}
        for n in options.sizes:
            x, _ = features(n, options.dim, options.clusters)
            print(f"{n} x {options.dim}, load {os.getloadavg()[0]:.1f}", flush=True)
            seconds: dict[str, float] = {}
            if "kmeans" not in options.skip:
                names = [name for name in KMEANS if name not in options.skip]
                seconds |= compare_kmeans(x, options.clusters, options.iterations, options.repeats, names)
            if "neighbors" not in options.skip:
                seconds |= compare_neighbors(x, options.repeats)
            for name, value in seconds.items():
                taken.setdefault(name, []).append((n, value))
            for what in [w for w in ("kmeans", "neighbors") if w not in options.skip]:
                print(
                    f"  peak memory of our {what}: {peak_memory(n, options, what):.0f} MiB on top of the rows",
                    flush=True,
                )
    for name, points in taken.items():
        if len(points) > 1:
            slope = np.polyfit([math.log(n) for n, _ in points], [math.log(s) for _, s in points], 1)[0]
            print(f"growth of {name}: N^{slope:.2f}")


if __name__ == "__main__":
    main()
