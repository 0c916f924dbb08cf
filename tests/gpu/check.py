"""Check raycluster on a machine with a real GPU, without Ray, in at most 8 minutes; print one JSON table and exit with 1 for a wrong result.

    PYTHONPATH=. python tests/gpu/check.py                  # on the machine with the GPU, in the root of the repository
    PYTHONPATH=. python tests/gpu/check.py --compile        # with torch.compile too, which needs a C compiler there
    PYTHONPATH=. python tests/gpu/check.py --device cpu --small    # tries the script itself, as the test suite does

The machine needs Python 3.11 or newer, 12 GB of GPU memory, 16 GB of memory, 4 GB of disk, and these packages: torch with CUDA, torchvision,
timm, pyarrow, numpy, scipy, scikit-learn, safetensors, pillow, huggingface_hub, filelock, pyyaml, threadpoolctl, tqdm. The script also needs
open_clip_torch, ftfy, wcwidth, regex, pydantic, pydantic_core, annotated-types, typing-inspection, typing-extensions. If the machine lacks
these, bring them along as 6 MB of wheels (for Python 3.12):

    python -m pip download --python-version 3.12 --only-binary=:all: -d wheels ftfy regex pydantic
    python -m pip download --python-version 3.12 --only-binary=:all: --no-deps -d wheels open_clip_torch
    python -m pip install --no-index --no-deps wheels/*.whl        # there

Weights are random, so nothing is downloaded; speed does not depend on them. Ray is neither needed nor imported.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from typing import Any

import torch
from clusters_on_gpu import check_clusters
from encoders_on_gpu import check_encoders
from table import Table
from training_on_gpu import check_training


def main() -> int:
    """Run all checks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models and few rows")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; use a machine with one, or --device cpu --small to try the script")
    table, started = Table(), time.perf_counter()
    # Libraries may print, but standard output must hold the table alone.
    with contextlib.redirect_stdout(sys.stderr):
        for check in (check_encoders, check_clusters, check_training):
            check(table, options.device, options.small, options.compile)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - started, 1),
        "rows": table.rows,
    }
    print(json.dumps(result, indent=1))
    return 0 if table.all_ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
