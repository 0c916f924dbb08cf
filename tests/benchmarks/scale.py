"""Measure the stages at scale: seconds, and the memory of the process that drives them.

    python tests/benchmarks/scale.py manifest                        # a list of 1,000,000 URIs and a folder of 100,000 files
    python tests/benchmarks/scale.py manifest --prefix s3://bucket/photos/ --endpoint http://host:9000
    python tests/benchmarks/scale.py rows --rows 100000 1000000      # tables of so many rows through all stages
    python tests/benchmarks/scale.py storage --images photos/ --model local-dir:/path/to/clip --prefix s3://bucket/scale --endpoint http://host:9000
    python tests/benchmarks/scale.py workers --images photos/ --model local-dir:/path/to/clip     # 1 … cores − 1 encoder workers
    python tests/benchmarks/scale.py kill                                                         # what a killed driver loses
    python tests/benchmarks/scale.py node                                                         # what a killed node costs

Each measurement runs the command as a user types it, in a process of its own. Memory is the peak of the driver's resident set, libraries
included, and the peak of the part of it that no file on the disk backs; Ray's processes are not counted. A large set is made of `--count`
links to the pictures. Without `--images` the pictures are drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from embed import Appearances, linked, stage
from embed import command as embedding

from raycluster.config import StorageConfig
from raycluster.storage.location import locate
from raycluster.tables.files import part_files
from raycluster.tables.rows import row_ids, statuses, vector_column


def driven(command: list[str], **environment: str) -> tuple[dict[str, Any], float, tuple[float, float]]:
    """The command's JSON line, its seconds, and the peak memory of its own process in MiB: all of it, and the part that no file backs."""
    started, peak, done = time.perf_counter(), (0.0, 0.0), threading.Event()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            resident, private = memory(process.pid)
            peak = max(peak[0], resident), max(peak[1], private)

    watcher = threading.Thread(target=watch)
    watcher.start()
    printed, errors = process.communicate()
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(errors)
    return json.loads(printed), time.perf_counter() - started, peak


def memory(pid: int) -> tuple[float, float]:
    """MiB of a process: the peak of its resident set, and its memory now without files (mostly libraries). Both are 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0, 0.0
    sizes = {
        key: int(value.split()[0]) / 1024 for key, _, value in (line.partition(":") for line in lines) if "kB" in value
    }
    return sizes.get("VmHWM", 0.0), sizes.get("RssAnon", 0.0)


def manifest(options: argparse.Namespace) -> None:
    """List images from a list, a folder and a prefix, and list each again when nothing has changed."""
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
                result, seconds, (peak, private) = driven(command)
                rows = result["stages"]["manifest"]["rows"]
                print(
                    f"{name:8} {turn:6} {rows:9d} rows {seconds:7.1f} s {peak:7.0f} MiB, {private:.0f} of it private",
                    flush=True,
                )


def manifest_sources(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Name and `images` of each measurement; its files are made in its turn. The first has two pictures and shows what libraries take."""
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


SMALL_PIECES = """
import sys, ray
from raycluster.cli import main
def small():
    from raycluster.encoder import ready_made
    ready_made.PIECE_ROWS = 128
hook = {"worker_process_setup_hook": small}
ray.init(address="local", include_dashboard=False, log_to_driver=False, runtime_env=hook)
sys.exit(main(sys.argv[1:]))
"""
"""The program of a run that imports made-up embeddings in pieces as small as those that encoders on CPUs write, with the same writer."""


def rows(options: argparse.Namespace) -> None:
    """Run k-means on made-up embeddings, and call the run again when there is nothing to do: what the tables cost, without encoders."""
    for count in options.rows:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            folder = Path(scratch)
            write_embeddings(folder / "embeddings", count, options.dim)
            command = [sys.executable, "-c", SMALL_PIECES, "run", "--embeddings", str(folder / "embeddings")]
            command += ["--output", str(folder / "run"), "--clusters", str(options.clusters), "--method.name", "kmeans"]
            command += ["--method.train_sample", str(options.train_sample)]
            for turn in ("first", "again"):
                result, seconds, (_, private) = driven(command)
                print(f"{count} x {options.dim}, {turn}: {seconds:.1f} s, driver {private:.0f} MiB private", flush=True)
                if turn == "first":
                    for name, entry in result["stages"].items():
                        print(f"  {name:10} {entry['seconds']:8.1f} s", flush=True)
            for table in ("manifest", "embeddings", "assignments"):
                sizes = [file.stat().st_size for file in (folder / "run" / table).rglob("*.parquet")]
                print(f"  {table}: {len(sizes)} files, {sum(sizes) / count:.0f} bytes a row")
            started = time.perf_counter()
            ok, _ = statuses(part_files(locate(result["tables"]["embeddings"])), np.arange(count))
            print(f"  statuses of {len(ok)} rows in {time.perf_counter() - started:.2f} s", flush=True)


def write_embeddings(folder: Path, count: int, dim: int) -> None:
    """Write made-up embeddings in files of 100,000 rows."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    centers = draw.standard_normal((100, dim))
    for start in range(0, count, 100_000):
        ids = range(start, min(count, start + 100_000))
        values = centers[draw.integers(100, size=len(ids))] + 0.3 * draw.standard_normal((len(ids), dim))
        table = {
            "image_id": [f"image {i:09d}" for i in ids],
            "uri": [f"s3://photographs/{i % 1000:03d}/{i:09d}.jpg" for i in ids],
            "embedding": vector_column(values.astype(np.float16)),
        }
        pq.write_table(pa.table(table), folder / f"{start:09d}.parquet")


def pictures(options: argparse.Namespace, scratch: str) -> Path:
    """A folder of `--count` links to pictures."""
    given = options.images
    if given is None:
        from raycluster.demo.drawing import draw_dataset
        from raycluster.demo.kinds import SHOWN_KINDS

        given = Path(scratch) / "drawn"
        draw_dataset(given, 480, SHOWN_KINDS, seed=900)
    files = sorted(path for path in given.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return linked(files, options.count, Path(scratch) / "linked")


def storage(options: argparse.Namespace) -> None:
    """Measure images a second of the embed stage, in turn from S3 and from local files."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = pictures(options, scratch)
        prefix = locate(options.prefix, StorageConfig(endpoint_url=options.endpoint))
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda file: (prefix / file.name).write_bytes(file.read_bytes()), folder.iterdir()))
        more = ["--storage.endpoint_url", options.endpoint] if options.endpoint else []
        ratios = []
        for _ in range(options.repeats):
            remote, _ = stage(options.prefix, options.model, *more)
            local, _ = stage(str(folder), options.model)
            ratios.append(remote / local)
            print(f"S3 {remote:.0f} images/s, local {local:.0f} images/s: {ratios[-1]:.2f}", flush=True)
        print(f"median ratio {statistics.median(ratios):.2f}")


BARE = """
import sys, time
import numpy as np, torch
from raycluster.config import EncoderConfig
from raycluster.encoder.clip import ClipEncoder, resolve_encoder
torch.set_num_threads(1)
encoder = ClipEncoder.load(resolve_encoder(EncoderConfig(model=sys.argv[1]), False), "cpu")
pixels = np.zeros((32, *encoder.spec.pixel_shape), np.uint8)
encoder.encode_pixels(pixels)
print(flush=True)
sys.stdin.readline()
started, done = time.perf_counter(), 0
while time.perf_counter() - started < 10:
    encoder.encode_pixels(pixels)
    done += len(pixels)
print(done / (time.perf_counter() - started))
"""
"""The program of a process that only encodes: it prints a line when it is ready, begins when it reads a line, and prints images/s."""


def bare(cores: list[int], model: str) -> float:
    """Images a second of one such process on each of these cores, all together. This is the limit of the machine."""
    started = [
        subprocess.Popen(
            ["taskset", "-c", str(core), sys.executable, "-c", BARE, model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for core in cores
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    printed = list(ThreadPoolExecutor(len(started)).map(lambda process: process.communicate("\n")[0], started))
    return sum(map(float, printed))


def workers(options: argparse.Namespace) -> None:
    """Measure images a second with n encoder workers on n + 1 cores, beside n processes that only encode on n cores."""
    cores = sorted(os.sched_getaffinity(0))
    script = (
        "import ray, sys; from raycluster.cli import main; "
        "ray.init(address='local', num_cpus=int(sys.argv[1]), include_dashboard=False, log_to_driver=False); "
        "sys.exit(main(sys.argv[2:]))"
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = pictures(options, scratch)
        rates: dict[int, list[tuple[float, float]]] = {}
        for repeat in range(options.repeats):
            for n in range(1, len(cores)):
                output = f"{scratch}/{repeat}-{n}"
                pinned = ["taskset", "-c", ",".join(map(str, cores[: n + 1])), sys.executable, "-c", script, str(n + 1)]
                arguments = embedding(str(folder), options.model, output)[3:]
                with Appearances(Path(output)) as parts:
                    driven([*pinned, *arguments, "--resources.encoder_actors", str(n)], OMP_NUM_THREADS="1")
                rate, limit = parts.steady_rate(), bare(cores[:n], options.model)
                rates.setdefault(n, []).append((rate, limit))
                print(f"{n} workers on {n + 1} cores: {rate:.0f} images/s; {n} bare processes: {limit:.0f}", flush=True)
        for n, found in rates.items():
            scaled = statistics.median(rate for rate, _ in found) / n / statistics.median(rate for rate, _ in rates[1])
            share = statistics.median(rate / limit for rate, limit in found)
            print(f"{n} workers: {scaled:.2f} of n times one, {share:.2f} of bare processes", flush=True)


FEW = 16
"""The number of pictures of a stage that does hardly more than start."""


def kill(options: argparse.Namespace) -> None:
    """Measure how much longer the embed stage takes when its driver is killed and called again. The second start does not count."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = pictures(options, scratch)
        few = linked(sorted(folder.iterdir())[:FEW], FEW, Path(scratch) / "few")

        def seconds(images: Path, output: Path) -> float:
            result, _, _ = driven(embedding(str(images), options.model, str(output)))
            return float(result["stages"]["embed"]["seconds"])

        starting = statistics.median(seconds(few, Path(scratch) / f"few-{turn}") for turn in range(options.repeats))
        whole = seconds(folder, Path(scratch) / "whole")
        shares = []
        for turn in range(options.repeats):
            output, share = Path(scratch) / f"killed-{turn}", (turn + 1) / (options.repeats + 1)
            process = subprocess.Popen(
                embedding(str(folder), options.model, str(output)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            while rows_below(output) < max(1, share * options.count):
                time.sleep(0.02)
            os.kill(process.pid, signal.SIGKILL)
            before = time.time() - embed_began(output)
            process.wait()
            saved = rows_below(output)
            after = seconds(folder, output)
            shares.append((before + after - whole - starting) / whole)
            print(
                f"killed after {before:.1f} s with {saved} of {options.count} rows saved, again {after:.1f} s: {shares[-1]:+.1%} of the stage redone",
                flush=True,
            )
        print(
            f"whole stage {whole:.1f} s, of {FEW} pictures {starting:.1f} s; median {statistics.median(shares):+.1%} redone"
        )


def embed_began(output: Path) -> float:
    """When the embed stage began, which is when the stage before it was marked as done."""
    return (output / "_stages" / "manifest.json").stat().st_mtime


def rows_below(output: Path) -> int:
    """Rows in the parts of an embeddings table that is being written."""
    folders = [locate(str(folder)) for folder in output.glob("embeddings/*")]
    return sum(len(row_ids(part_files(folder))) for folder in folders)


def node(options: argparse.Namespace) -> None:
    """Measure the seconds of the embed stage on three nodes of this machine: undisturbed, and when one node is killed half-way."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from ray_nodes import cluster_of

    with tempfile.TemporaryDirectory() as scratch:
        folder = pictures(options, scratch)
        for turn in range(options.repeats):
            seconds = []
            for killed in (False, True):
                output = Path(scratch) / f"{turn}-{killed}"
                with cluster_of(1, 1, 1) as (nodes, workers):
                    environment = {**os.environ, **nodes.environment, "RAY_ADDRESS": nodes.address}
                    process = subprocess.Popen(
                        embedding(str(folder), options.model, str(output)), stdout=subprocess.PIPE, env=environment
                    )
                    while killed and rows_below(output) < options.count / 2:
                        time.sleep(0.05)
                    if killed:
                        nodes.kill(workers[-1])
                    printed, _ = process.communicate()
                    seconds.append(json.loads(printed)["stages"]["embed"]["seconds"])
            print(f"undisturbed {seconds[0]:.0f} s, with a node killed {seconds[1]:.0f} s", flush=True)


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
    command = commands.add_parser("rows", help=rows.__doc__)
    command.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    command.add_argument("--dim", type=int, default=16)
    command.add_argument("--clusters", type=int, default=100)
    command.add_argument("--train-sample", type=int, default=100_000)
    command.add_argument("--scratch", help="folder for the files (default: the usual temporary one)")
    command.set_defaults(function=rows)
    for function in (storage, workers, kill, node):
        command = commands.add_parser(function.__name__, help=function.__doc__)
        command.add_argument("--images", type=Path, help="folder of pictures")
        command.add_argument("--model", default="builtin")
        command.add_argument("--count", type=int, default=2000)
        command.add_argument("--repeats", type=int, default=3)
        command.set_defaults(function=function)
        if function is storage:
            command.add_argument("--prefix", required=True, help="s3:// prefix to write the pictures to")
            command.add_argument("--endpoint", help="its server, if it is not AWS")
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
