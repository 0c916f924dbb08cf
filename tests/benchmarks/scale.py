"""How the stages fare at scale: seconds, and the memory of the process that drives them.

    python tests/benchmarks/scale.py manifest                        # a list of 1,000,000 URIs and a folder of 100,000 files
    python tests/benchmarks/scale.py manifest --prefix s3://bucket/photos/ --endpoint http://host:9000

Each measurement is the command as a user types it, in a process of its own. Memory is the driver's resident set at its highest, libraries
and all; Ray's processes beside it are not counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def driven(command: list[str]) -> tuple[dict[str, Any], float, float]:
    """The command's JSON line, its seconds, and the peak resident set of its own process in MiB."""
    started, peak, done = time.perf_counter(), [0.0], threading.Event()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], high_water(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    printed, errors = process.communicate()
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(errors)
    return json.loads(printed), time.perf_counter() - started, peak[0]


def high_water(pid: int) -> float:
    """The highest resident set of a process so far, in MiB; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


def manifest(options: argparse.Namespace) -> None:
    """List images: the same three ways, and again when nothing has changed."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "few").mkdir()
        for i in range(2):
            (folder / "few" / f"{i}.jpg").write_bytes(b"x")
        for name, images in manifest_sources(folder, options):
            command = [sys.executable, "-m", "raycluster.cli", "manifest", "--images", images]
            command += ["--output", str(folder / name), "--clusters", "2", "--encoder.model", "builtin"]
            if options.endpoint:
                command += ["--storage.endpoint_url", options.endpoint]
            for turn in ("first", "again"):
                result, seconds, peak = driven(command)
                rows = result["stages"]["manifest"]["rows"]
                print(f"{name:8} {turn:6} {rows:9d} rows {seconds:7.1f} s {peak:7.0f} MiB", flush=True)


def manifest_sources(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Name and `images` of each measurement, made when it is its turn; first two pictures, which show what libraries take."""
    yield "two", str(folder / "few")
    if options.rows:
        uris = [f"s3://photographs/{i % 1000:03d}/{i:09d}.jpg" for i in range(options.rows)]
        pq.write_table(
            pa.table({"uri": uris, "label": [f"class {i % 1000}" for i in range(options.rows)]}),
            folder / "list.parquet",
        )
        del uris
        yield "list", str(folder / "list.parquet")
    if options.files:
        for i in range(options.files):
            if i % 1000 == 0:
                (folder / "photos" / f"{i // 1000:03d}").mkdir(parents=True)
            (folder / "photos" / f"{i // 1000:03d}" / f"{i:09d}.jpg").write_bytes(b"x")
        yield "folder", str(folder / "photos")
    if options.prefix:
        yield "prefix", options.prefix


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("manifest", help=manifest.__doc__)
    command.add_argument("--rows", type=int, default=1_000_000, help="of a Parquet list")
    command.add_argument("--files", type=int, default=100_000, help="in a local folder")
    command.add_argument("--prefix", help="s3:// prefix to list too")
    command.add_argument("--endpoint", help="its server, if it is not AWS")
    command.set_defaults(function=manifest)
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
