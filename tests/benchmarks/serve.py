"""Compare the endpoint with the limit of its cores and with a plain FastAPI app.

    python tests/benchmarks/serve.py --images photos/ --model local-dir:/path/to/clip
    python tests/benchmarks/serve.py                      # drawn pictures and the built-in model

Three programs run in turn on the same cores. `limit` is no server: one process decodes, preprocesses and encodes, with threads that decode
ahead and the model on all of these cores. `plain` is a FastAPI app that calls the model under a lock, for one picture at a time.
`raycluster` is the endpoint, and all of its processes (proxy, ingress, model and Ray's own) share these cores; with `--apart` only the
model replica has them, and proxy and ingress run on `--other-cores`. Clients on other cores send `--each` pictures a request over
connections that stay open, and hold the pictures in memory. The model is k-means on the embeddings of these pictures. Beside the rates the
script prints the CPU time that all processes of a server take for a picture, because this is meaningful on a busy machine too.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, UploadFile

FORWARD = 32
"""The number of pictures of a forward pass, in `limit` and in the endpoint."""


def make_model(files: Sequence[Path], encoder: str, folder: Path) -> None:
    """A model folder: k-means on the embeddings of these files."""
    import torch

    from raycluster.config import EncoderConfig, MethodConfig
    from raycluster.encoder.clip import ClipEncoder, pil_transform, resolve_encoder
    from raycluster.images.decode import decode_batch
    from raycluster.images.fetch import Fetched
    from raycluster.methods import registry
    from raycluster.methods.base import FittedMethod, TrainingData
    from raycluster.model.files import save_model
    from raycluster.model.model import make_memory
    from raycluster.storage.location import locate

    config = EncoderConfig(model=encoder, precision="fp32")
    spec = resolve_encoder(config, use_gpu=False)
    fetched = [Fetched(file.read_bytes()) for file in files]
    pixels = decode_batch(fetched, pil_transform(spec), 10**8, min_side=min(spec.image_size)).pixels
    rows = np.frombuffer(b"".join(p for p in pixels if p is not None), np.uint8).reshape(-1, *spec.pixel_shape)
    images = ClipEncoder.load(spec, "cpu").encode_pixels(rows)
    method = registry.build(MethodConfig(name="kmeans"), spec.dim, 20, len(images), 0)
    assert isinstance(method, FittedMethod)
    method.fit(TrainingData(torch.arange(len(images)), torch.from_numpy(images)))
    record = {"config": config.model_dump(mode="json"), "precision": "fp32", "fingerprint": spec.fingerprint}
    names = [{"name": f"cluster {index}", "nouns": []} for index in range(20)]
    save_model(locate(str(folder)), method, make_memory(method, images)[0], record, names, {"seed": 0, "training": {}})


def limit(files: list[Path], folder: str, seconds: float, cores: int) -> tuple[float, float]:
    """Images a second of one process, and its CPU milliseconds an image."""
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from raycluster.encoder.clip import pil_transform
    from raycluster.images.decode import decode_batch
    from raycluster.images.fetch import Fetched
    from raycluster.model.files import load_model
    from raycluster.model.prediction import outliers, probabilities

    torch.set_num_threads(cores)
    model = load_model(folder)
    spec, transform = model.spec, pil_transform(model.spec)
    contents = [file.read_bytes() for file in files]

    def read(start: int) -> np.ndarray:
        batch = [Fetched(contents[(start + i) % len(contents)]) for i in range(FORWARD)]
        decoded = decode_batch(batch, transform, 10**8, min_side=min(spec.image_size))
        return np.frombuffer(b"".join(p for p in decoded.pixels if p is not None), np.uint8).reshape(
            -1, *spec.pixel_shape
        )

    starts, done, started, cpu = count(step=FORWARD), 0, 0.0, 0.0
    with ThreadPoolExecutor(cores) as pool:
        ahead = [pool.submit(read, next(starts)) for _ in range(2 * cores)]
        for index in count():
            pixels = ahead.pop(0).result()
            embeddings = model.encode(pixels)
            probabilities(model.method, embeddings), outliers(model.novelty, embeddings)
            ahead.append(pool.submit(read, next(starts)))
            if index == 3:
                done, started, cpu = 0, time.perf_counter(), time.process_time()
            elif index > 3:
                done += len(pixels)
                if time.perf_counter() - started > seconds:
                    for future in ahead:
                        future.cancel()
                    return done / (time.perf_counter() - started), 1000 * (time.process_time() - cpu) / done
    raise AssertionError


def plain(folder: str, port: int, cores: int) -> None:
    """The app that most people would write: FastAPI, one process, the model behind a lock."""
    import torch
    import uvicorn

    from raycluster.encoder.clip import pil_transform
    from raycluster.images.decode import decode
    from raycluster.model.files import load_model
    from raycluster.model.prediction import probabilities, top_two

    torch.set_num_threads(cores)
    model, one_at_a_time, app = load_model(folder), threading.Lock(), FastAPI()
    transform, side = pil_transform(model.spec), min(model.spec.image_size)
    model.encode(np.zeros((1, *model.spec.pixel_shape), np.uint8))

    @app.get("/readyz")
    def ready() -> str:
        return "ok"

    @app.post("/v1/assign")
    def assign(files: list[UploadFile]) -> dict[str, Any]:
        items = []
        for file in files:
            pixels = transform(decode(file.file.read(), 10**8, side).image)
            with one_at_a_time:
                found = top_two(probabilities(model.method, model.encode(pixels[None])))
            items.append({"id": file.filename, "cluster": int(found[0][0]), "confidence": float(found[1][0])})
        return {"items": items}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def endpoint(folder: str, port: int, cores: int) -> None:
    """Run `raycluster serve` on a Ray that counts two cores more, so that there is room for all that it reserves."""
    import ray

    from raycluster.serving.command import running
    from raycluster.serving.settings import ServeSettings

    ray.init(address="local", num_cpus=cores + 2, include_dashboard=False, log_to_driver=False)
    model = {"num_cpus": cores, "max_batch": FORWARD}
    settings = ServeSettings.model_validate(
        {"run": folder, "model": model, "ingress": {"num_cpus": 1, "max_replicas": 1}}
    )
    with running(settings, "127.0.0.1", port):
        threading.Event().wait()


def client(
    port: int, files: list[Path], clients: int, seconds: float, each: int
) -> tuple[float, float, float, int, int]:
    """Images a second, p50 and p99 of the latency in milliseconds, the number of pictures sent, and that of failed requests."""
    contents = [file.read_bytes() for file in files]
    bodies = [_form([contents[(i + k) % len(contents)] for k in range(each)]) for i in range(len(contents))]
    times: list[tuple[float, float]] = []
    failed, end = [0], time.perf_counter() + 3 + seconds
    turn = count()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        headers = {"content-type": "multipart/form-data; boundary=b"}
        while time.perf_counter() < end:
            started = time.perf_counter()
            connection.request("POST", "/v1/assign", bodies[next(turn) % len(bodies)], headers)
            reply = connection.getresponse()
            reply.read()
            failed[0] += reply.status != 200
            times.append((started, time.perf_counter()))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The first seconds are the warm-up. Requests that ended after the last second do not count, because fewer ran beside them.
    counted = [(a, b) for a, b in times if end - seconds <= b <= end]
    latencies = sorted(1000 * (b - a) for a, b in counted)
    at = lambda share: latencies[min(len(latencies) - 1, int(share * len(latencies)))]  # noqa: E731
    return each * len(counted) / seconds, at(0.5), at(0.99), each * len(times), failed[0]


def _form(pictures: list[bytes]) -> bytes:
    head = b'--b\r\ncontent-disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    return b"".join(head + data + b"\r\n" for data in pictures) + b"--b--\r\n"


@contextmanager
def server(kind: str, folder: str, cores: list[int]) -> Iterator[tuple[int, int]]:
    """Start a server on these cores; yield its port and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = _pinned(cores, "--role", kind, "--folder", folder, "--port", str(port))
    try:
        deadline = time.monotonic() + 300
        while not _ready(port):
            assert process.poll() is None, f"{kind} ended"
            assert time.monotonic() < deadline, f"{kind} does not start"
            time.sleep(0.5)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(60)


def _ready(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False


def _pinned(cores: list[int], *arguments: str, **options: Any) -> subprocess.Popen[str]:
    listed = ",".join(map(str, cores))
    # Ray sets the threads of its workers itself; for everything else the cores are the limit.
    command = ["taskset", "-c", listed, sys.executable, __file__, "--cores", listed, *arguments]
    return subprocess.Popen(command, text=True, stderr=subprocess.DEVNULL, **options)


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process and all processes below it, including those that have ended and were waited for."""
    spent: dict[int, tuple[int, float]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        spent[int(process.name)] = int(fields[1]), sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    below, total = {pid}, 0.0
    while below:
        total += sum(spent[each][1] for each in below if each in spent)
        below = {each for each, (parent, _) in spent.items() if parent in below}
    return total


def _move(name: str, cores: list[int]) -> None:
    """Pin all threads of the processes whose title begins with `name`."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().decode().startswith(name):
                for thread in (process / "task").iterdir():
                    os.sched_setaffinity(int(thread.name), cores)
        except (FileNotFoundError, ProcessLookupError):
            continue


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    every = sorted(os.sched_getaffinity(0))
    half = max(1, len(every) // 2)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--cores", type=numbers, default=every[:half], help="of the server")
    parser.add_argument("--client-cores", type=numbers, default=every[half:] or every)
    parser.add_argument("--other-cores", type=numbers, help="with --apart: of proxy and ingress")
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--each", type=int, default=1, help="pictures a request")
    parser.add_argument("--clients", type=numbers, default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        _act(options)
        return
    with tempfile.TemporaryDirectory() as scratch:
        if options.images is None:
            from raycluster.demo.drawing import draw_dataset
            from raycluster.demo.kinds import SHOWN_KINDS

            options.images = Path(scratch) / "drawn"
            draw_dataset(options.images, 240, SHOWN_KINDS, seed=900)
        folder = str(Path(scratch) / "model")
        make_model(_files(options.images), options.model, Path(folder))
        print(
            f"server on cores {options.cores}, clients on {options.client_cores}, {options.each} a request, model {options.model}; load {os.getloadavg()[0]:.1f}"
        )
        _measure(options, folder)


def _act(options: argparse.Namespace) -> None:
    """Do the work of a process that this script has started."""
    cores = len(options.cores)
    if options.role == "limit":
        print(*limit(_files(options.images), options.folder, options.seconds, cores))
    elif options.role == "client":
        print(*client(options.port, _files(options.images), options.clients[0], options.seconds, options.each))
    else:
        {"plain": plain, "raycluster": endpoint}[options.role](options.folder, options.port, cores)


def _measure(options: argparse.Namespace, folder: str) -> None:
    images = ["--images", str(options.images), "--seconds", str(options.seconds)]
    ratios = []
    for _ in range(options.repeats):
        process = _pinned(options.cores, "--role", "limit", "--folder", folder, *images, stdout=subprocess.PIPE)
        top, cpu = map(float, process.communicate()[0].split()[-2:])
        print(f"{'limit':>10}: {'':11} {top:6.1f} images/s{'':32}  CPU {cpu:4.0f} ms/image")
        rates: dict[str, float] = {}
        for kind in ("plain", "raycluster"):
            with server(kind, folder, options.cores) as (port, pid):
                if kind == "raycluster" and options.apart:
                    for name in ("ray::ProxyActor", "ray::ServeReplica:raycluster:Ingress", "ray::ServeController"):
                        _move(name, options.other_cores)
                for clients in options.clients:
                    asking = [
                        "--role",
                        "client",
                        "--port",
                        str(port),
                        "--clients",
                        str(clients),
                        "--each",
                        str(options.each),
                        *images,
                    ]
                    cpu = _cpu_seconds(pid)
                    out = _pinned(options.client_cores, *asking, stdout=subprocess.PIPE).communicate()[0]
                    rate, median, worst, done, failed = map(float, out.split())
                    cpu = 1000 * (_cpu_seconds(pid) - cpu) / done
                    assert not failed, f"{kind}: {failed:.0f} requests failed"
                    rates[kind] = rate
                    print(
                        f"{kind:>10}: {clients:3} clients {rate:6.1f} images/s  p50 {median:6.0f} ms  p99 {worst:6.0f} ms  CPU {cpu:4.0f} ms/image"
                    )
        ratios.append((rates["raycluster"] / top, rates["raycluster"] / rates["plain"]))
        print(
            f"at {options.clients[-1]} clients: {ratios[-1][0]:.2f} of the limit, {ratios[-1][1]:.2f} times the plain app; load {os.getloadavg()[0]:.1f}"
        )
    of_limit, times = (statistics.median(values) for values in zip(*ratios, strict=True))
    print(f"median: {of_limit:.2f} of the limit, {times:.2f} times the plain app")


def _files(folder: Path) -> list[Path]:
    suffixes = (".jpg", ".jpeg", ".png")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)[:500]


if __name__ == "__main__":
    main()
