"""Compute what a run takes at 10⁶, 10⁷ and 10⁸ images: memory, files, requests, hours and dollars, from measured figures.

    python tests/benchmarks/costs.py                                          # the table of docs/scale.md
    python tests/benchmarks/costs.py --images 3e7 --gpus 4 --rate 1500        # your own collection and GPUs

The figures below were measured by the command that stands beside each. Prices are list prices of 2025 in us-east-1, on demand.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

PARTITION = 16_384
"""Rows of a part file (raycluster.tables.names)."""
GPU_BLOCK = 512
"""Most images of a piece that encoders on GPUs write (raycluster.encoder.embed)."""
DRIVER_LIBRARIES = 0.76
"""GiB of the driver's private memory with next to no rows: Ray, torch, Arrow (scale.py rows: that at 1 million less its rows)."""
DRIVER_ROW = 70
"""Bytes a row of the driver at its peak: ids of the manifest and of the rows that are ok in each table, and hashes while it lists
(scale.py rows: private memory at 10 million rows less that at 1 million)."""
DISK_ROW = {"manifest": 18 + 24, "embeddings": 7 + 16, "assignments": 19}
"""Bytes a row on the disk beside the vectors, compressed, with numbered names (scale.py rows). An ETag adds 24 bytes, a hash 16."""
LISTS = 1.2 / 1000
"""LIST requests an image (scale.py manifest --prefix: pages of a thousand keys, and the ranges that are cut in vain)."""
READS = 2
"""Requests an image of a stage that reads pictures, a HEAD and a GET; and requests a piece that it writes, a PUT and a GET
(pytest -m slow tests/pipeline/test_requests.py)."""
OTHERS = 10 * 5
"""Requests a partition of all other stages together (the same test)."""
PRICES = {"read": 0.4e-6, "write": 5e-6}
"""Dollars of a GET or HEAD, and of a PUT or LIST."""


def rows(options: argparse.Namespace) -> dict[str, Callable[[float], str]]:
    """The rows of the table: name → value for a number of images."""
    vector = 2 * options.dim

    def hours(n: float) -> float:
        return n / (options.rate * options.gpus) / 3600

    def disk(n: float) -> float:
        return n * (sum(DISK_ROW.values()) + 2 * vector)

    def dollars(n: float) -> float:
        pieces = math.ceil(n / GPU_BLOCK)
        requests = PRICES["read"] * (n * READS + pieces + OTHERS * n / PARTITION) + PRICES["write"] * (
            n * LISTS + pieces
        )
        return requests + hours(n) * options.gpus * options.dollars

    return {
        "files of each table": lambda n: f"{math.ceil(n / PARTITION):,}",
        "GB of tables, counterparts included": lambda n: f"{disk(n) / 1e9:,.1f}",
        "GiB of the driver beside the training sample": lambda n: f"{DRIVER_LIBRARIES + n * DRIVER_ROW / 2**30:.1f}",
        "GiB of a training sample of " + f"{options.sample:,.0f}": lambda n: (
            f"{min(n, options.sample) * vector / 2**30:.2f}"
        ),
        "LIST requests": lambda n: f"{math.ceil(n * LISTS):,}",
        "requests of embed": lambda n: f"{n * READS + 2 * math.ceil(n / GPU_BLOCK):,.0f}",
        f"hours of embed on {options.gpus} GPUs of {options.rate:,.0f} images/s": lambda n: f"{hours(n):.2f}",
        f"dollars of requests and of GPUs at ${options.dollars:.2f} an hour": lambda n: f"{dollars(n):,.2f}",
    }


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=float, nargs="+", default=[1e6, 1e7, 1e8])
    parser.add_argument("--dim", type=int, default=512, help="of an embedding")
    parser.add_argument("--sample", type=float, default=200_000, help="method.train_sample")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument(
        "--rate", type=float, default=1000, help="images/s of a GPU with its CPUs (embed.py measures it)"
    )
    parser.add_argument("--dollars", type=float, default=1.21, help="of a GPU an hour (default: g5.2xlarge)")
    options = parser.parse_args()
    print("| images | " + " | ".join(f"{n:,.0f}" for n in options.images) + " |")
    print("|---" * (1 + len(options.images)) + "|")
    for name, value in rows(options).items():
        print(f"| {name} | " + " | ".join(map(value, options.images)) + " |")


if __name__ == "__main__":
    main()
