"""Compare the method `consensus` with its alternatives: seconds and memory, on rows that look like CLIP features.

    python tests/benchmarks/consensus.py --sizes 10000 100000 1000000 --clusters 100 1000 --threads 1 4

Each measurement runs in a process of its own. Its seconds include fitting and labeling all rows. The CPU time of all threads together is
printed too, because other work on the machine hardly changes it. Memory is the peak of the process minus what it held before, plus the
rows in float16. Consensus gets as many nouns as clusters, and 2,000 more that mean nothing. If there are more rows than its sample
(200,000), it is fitted on the sample and assigns the rest. DXMC finds neighbors and trains on at most 100,000 rows. Spectral clustering
runs on at most 10,000 rows.
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

import numpy as np
import torch
from clustering import features
from sklearn.cluster import MiniBatchKMeans, SpectralClustering
from sklearn.metrics import normalized_mutual_info_score
from threadpoolctl import threadpool_limits

from raycluster.config import MethodConfig
from raycluster.methods import registry
from raycluster.methods.base import TrainedMethod, TrainingData
from raycluster.methods.consensus import consensus_clusters
from raycluster.model.prediction import probabilities
from raycluster.training.loop import find_neighbors, train

SPECTRAL_ROWS = 10_000
DXMC_ROWS = 100_000


def _data(x: np.ndarray, nouns: np.ndarray) -> TrainingData:
    return TrainingData(torch.arange(len(x)), torch.from_numpy(x), vocabulary=torch.from_numpy(nouns))


def _consensus(x: np.ndarray, nouns: np.ndarray, clusters: int) -> np.ndarray:
    return consensus_clusters(_data(x, nouns), clusters, seed=0).numpy()


def _image_only(x: np.ndarray, nouns: np.ndarray, clusters: int) -> np.ndarray:
    return consensus_clusters(TrainingData(torch.arange(len(x)), torch.from_numpy(x)), clusters, seed=0).numpy()


def _minibatch(x: np.ndarray, nouns: np.ndarray, clusters: int) -> np.ndarray:
    return MiniBatchKMeans(clusters, n_init=1, batch_size=4096, random_state=0).fit_predict(x.astype(np.float32))


def _spectral(x: np.ndarray, nouns: np.ndarray, clusters: int) -> np.ndarray:
    found = SpectralClustering(clusters, affinity="nearest_neighbors", n_neighbors=20, random_state=0, n_jobs=-1)
    return found.fit_predict(x.astype(np.float32))


def _dxmc(x: np.ndarray, nouns: np.ndarray, clusters: int) -> np.ndarray:
    config = registry.configure(MethodConfig(name="dxmc"))
    space, sample = registry.space(config), torch.from_numpy(x[:DXMC_ROWS])
    kept = torch.from_numpy(nouns)[space.select(sample, torch.from_numpy(nouns), clusters, seed=0)]
    paired = torch.cat([space.pair(rows, kept).half() for rows in sample.split(16_384)])
    data = TrainingData(torch.arange(len(sample)), sample, paired, kept)
    method = registry.build(config, x.shape[1], clusters, len(sample), seed=0)
    assert isinstance(method, TrainedMethod)
    train(method, data, find_neighbors(method, data))
    chunks = np.array_split(x, max(1, len(x) // 16_384))
    return np.concatenate([probabilities(method, rows).argmax(dim=1).numpy() for rows in chunks])


METHODS: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "consensus": _consensus,
    "image-only": _image_only,
    "minibatch": _minibatch,
    "spectral": _spectral,
    "dxmc": _dxmc,
}


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
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.sizes[0], options.dim, options.clusters[0], options.threads[0])))
        return
    for rows in options.sizes:
        for clusters in options.clusters:
            for threads in options.threads:
                for name in options.methods:
                    if name == "spectral" and rows > SPECTRAL_ROWS:
                        continue
                    command = [sys.executable, __file__, "--one", name, "--sizes", str(rows), "--dim", str(options.dim)]
                    command += ["--clusters", str(clusters), "--threads", str(threads)]
                    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                    print(
                        f"{rows:8d} x {options.dim}  C {clusters:5d}  {threads} threads  {name:10} "
                        f"{found['seconds']:8.1f} s  (CPU {found['cpu']:8.1f} s)  {found['mib']:7.0f} MiB  NMI {found['nmi']:.3f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
