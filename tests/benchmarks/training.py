"""Compare the training of DXMC's heads with a plain loop of the same steps on the same number of threads.

    python tests/benchmarks/training.py --rows 100000 --clusters 1000 --steps 20

`training_growth.py` measures whether a step takes as long on a million rows as on few.

`ours` is the loop that every Ray Train worker runs, on shared float16 rows, with counted draws and the global batch's losses; `plain` is
the loop that one would write by hand: everything in float32, torch's own draws and optimizer, no bookkeeping. Both run in turns, and the
script prints the median seconds of a step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch
from clustering import features
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from raycluster.config import MethodConfig
from raycluster.methods import registry
from raycluster.methods.base import TrainedMethod, TrainingData
from raycluster.training.loop import train


def plain(images: Tensor, texts: Tensor, near: tuple[Tensor, Tensor], batch: int, steps: int, clusters: int) -> None:
    """DXMC's cluster level: two heads, drawn neighbors, two contrasts, two entropies, Adam."""
    dim = images.shape[1]
    image_head, text_head = (
        nn.Sequential(nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.ReLU(), nn.Linear(dim, clusters)) for _ in range(2)
    )
    optimizer = torch.optim.Adam([*image_head.parameters(), *text_head.parameters()], lr=1e-3, betas=(0.9, 0.99))
    diagonal = torch.eye(2 * clusters, dtype=torch.bool)
    partner = torch.arange(2 * clusters).roll(clusters)

    def contrast(p: Tensor, q: Tensor) -> Tensor:
        columns = normalize(torch.cat([p.T, q.T]), dim=1)
        return cross_entropy((columns @ columns.T / 0.2).masked_fill(diagonal, -torch.inf), partner)

    order = torch.randperm(len(images))
    for step in range(steps):
        rows = order[(step * batch) % (len(order) - batch + 1) :][:batch]
        draws = [graph[rows, torch.randint(graph.shape[1], (batch,))].long() for graph in near]
        p, q = text_head(texts[rows]).softmax(1), image_head(images[rows]).softmax(1)
        near_q, near_p = image_head(images[draws[0]]).softmax(1), text_head(texts[draws[1]]).softmax(1)
        entropy = sum(torch.special.entr(each.mean(0).clamp_min(1e-30)).sum() for each in (p, q))
        loss = contrast(q, near_p) + contrast(p, near_q) - 5 * entropy
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images, texts = (
        torch.from_numpy(features(options.rows, options.dim, options.clusters, seed)[0]) for seed in (0, 1)
    )
    near = tuple(torch.randint(options.rows, (options.rows, 33), dtype=torch.int32) for _ in range(2))
    data = TrainingData(torch.arange(options.rows), images.half(), texts.half())
    batch = registry.build(MethodConfig(name="dxmc"), options.dim, options.clusters, options.rows, 0).constants[
        "batch_size"
    ]
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for repeat in range(options.repeats + 1):
        for name, times in seconds.items():
            start = time.perf_counter()
            if name == "plain":
                plain(images, texts, near, batch, options.steps, options.clusters)
            else:
                epochs = max(1, options.steps // (options.rows // batch))
                method = registry.build(
                    MethodConfig.model_validate({"name": "dxmc", "epochs": epochs}),
                    options.dim, options.clusters, options.rows, seed=0,
                )  # fmt: skip
                assert isinstance(method, TrainedMethod)
                train(method, data, {"image_neighbors": near[0], "text_neighbors": near[1]})
                steps = epochs * (options.rows // batch)
            taken = time.perf_counter() - start
            if repeat:  # the first turn warms up
                times.append(taken / (options.steps if name == "plain" else steps))
    print(f"{options.rows} x {options.dim}, {options.clusters} clusters, batch {batch}, {options.threads} threads")
    for name, times in seconds.items():
        print(f"  {name:6} {statistics.median(times):.3f} s a step  ({', '.join(f'{t:.3f}' for t in times)})")
    ratio = statistics.median(b / a for a, b in zip(seconds["ours"], seconds["plain"], strict=True))
    print(f"  plain takes x{ratio:.2f} of ours")


if __name__ == "__main__":
    main()
