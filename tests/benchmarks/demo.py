"""Print the demo's scores for five seeds of drawing and training, by method: `python tests/benchmarks/demo.py`."""

from __future__ import annotations

import statistics
import sys
import tempfile

from raycluster.demo.main import demo


def main() -> None:
    """Print one line for each seed, and the medians."""
    seeds = [int(word) for word in sys.argv[1:]] or list(range(5))
    scores: dict[str, list[float]] = {"kmeans": [], "dxmc": [], "consensus": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            for method, found in scores.items():
                found.append(demo(folder, seed, method)["metrics"]["acc"])
            print(
                f"seed {seed}: " + ", ".join(f"{method} ACC {found[-1]:.3f}" for method, found in scores.items()),
                flush=True,
            )
    print("median: " + ", ".join(f"{method} ACC {statistics.median(found):.3f}" for method, found in scores.items()))


if __name__ == "__main__":
    main()
