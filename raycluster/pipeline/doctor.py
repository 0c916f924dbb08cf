"""`raycluster doctor`: check what a run needs before it starts, and say how to repair what is wrong."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import ray
import ray._private.worker as worker
import torch

from raycluster.compute import nodes
from raycluster.compute.connect import join
from raycluster.compute.node_checks import check_seen, check_versions, local_path, place, versions_question
from raycluster.compute.nodes import Node
from raycluster.compute.resources import resolve
from raycluster.config import ResourcesConfig, RunConfig
from raycluster.errors import ConfigError
from raycluster.storage.location import locate
from raycluster.storage.probes import Check, attempt, storage_checks

log = logging.getLogger(__name__)

NODE_S = 120.0
"""Longest wait for the answers of the nodes, in seconds."""
FREE_DISK = 5 * 2**30
"""Bytes that Ray's temporary folder should have free for logs, spilled objects and runtime environments."""
FULL_DISK = 0.95
"""Ray refuses work on a node if a larger share of its disk is full."""


def doctor(config: RunConfig | None) -> dict[str, Any]:
    """Make every check and log a line for each; return `{command, status, checks}` with status `failed` if a check failed.

    `config`: the run that is checked, with its storage, images and resources. With None only Ray and its nodes are checked.
    """
    checks = []
    for check in _all(config):
        log.info("%-7s %-15s %s", check.state, check.name, check.detail)
        if check.remedy:
            log.info("%-7s %-15s → %s", "", "", check.remedy)
        checks.append(check)
    failed = [check for check in checks if check.state == "failed"]
    return {
        "command": "doctor",
        "status": "failed" if failed else "ok",
        "checks": [asdict(check) for check in checks],
    }


def _all(config: RunConfig | None) -> Iterator[Check]:
    if config is None:
        yield Check("storage", "skipped", "output and images were not checked, because no --config was given")
    else:
        yield from storage_checks(config)
    joined = attempt("ray", _join)
    yield joined
    if joined.state == "failed":
        return
    same = attempt("versions", _versions)
    yield same
    everywhere = nodes.alive()
    yield attempt("gpus", partial(_gpus, config.resources if config else ResourcesConfig(), everywhere))
    facts = nodes.ask(everywhere, _facts, wait=NODE_S)
    yield attempt("/dev/shm", partial(_shm, facts))
    yield attempt("disk", partial(_disk, facts))
    if config is None or not (others := nodes.others()):
        return
    if same.state == "failed":
        yield Check("nodes' storage", "skipped", "not checked, because `versions` failed")
        return
    yield attempt("nodes' storage", partial(_storage_of, others, config))
    yield attempt("local paths", partial(_local_paths, others, config))


def _join() -> str:
    joined = join()
    found = nodes.alive()
    cpus, gpus = sum(node.cpus for node in found), sum(node.gpus for node in found)
    where = "joined" if joined else "started here"
    return f"Ray {ray.__version__} {where}: {len(found)} nodes, {cpus:g} CPUs, {gpus:g} GPUs"


def _versions() -> str:
    check_versions(wait=NODE_S)
    return ", ".join(f"{package} {version}" for package, version in versions_question()().items())


def _gpus(resources: ResourcesConfig, everywhere: list[Node]) -> str:
    """Try a GPU of each node, and check that the cluster has what `resources:` asks for."""
    if resources.wait_seconds == 0:
        resolve(resources)
    holders = [node for node in everywhere if node.gpus > 0]
    if not holders:
        asked = " yet; the autoscaler will be asked for them" if resources.wait_seconds and resources.use_gpu else ""
        return f"none{asked or ', so models run on CPUs'}"
    found = nodes.ask(holders, _cuda, wait=NODE_S, gpus=1)
    broken = [f"{node.address}: {answer}" for node, answer in found.items() if not answer.startswith("cuda")]
    if broken:
        raise ConfigError(
            f"PyTorch cannot use the GPU of node {nodes.some(broken)}; install a CUDA build of torch that the driver supports, "
            "and give containers access to the GPU (NVIDIA container toolkit, nvidia.com/gpu)"
        )
    return nodes.some(
        sorted({f"{node.gpus:g} × {answer.partition(' ')[2]} on {node.address}" for node, answer in found.items()})
    )


def _cuda() -> str:
    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:  # a build without CUDA raises AssertionError
        return str(error).splitlines()[0]
    return f"cuda {torch.cuda.get_device_name()}"


def _facts() -> dict[str, int]:
    """Return sizes of /dev/shm and of the disk of Ray's temporary folder, in bytes, on the node where this is called."""
    shm, disk = shutil.disk_usage("/dev/shm"), shutil.disk_usage(worker.global_worker.node.get_temp_dir_path())
    return {"shm": shm.total, "disk": disk.total, "free": disk.free}


def _shm(facts: dict[Node, dict[str, int]]) -> str:
    stores = {node["NodeID"]: node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]}
    small = [
        f"{_gib(found['shm'])} on node {node.address}, whose object store may take {_gib(stores[node.id])}"
        for node, found in facts.items()
        if found["shm"] < stores.get(node.id, 0)
    ]
    if small:
        raise ConfigError(
            f"/dev/shm has {nodes.some(small)}, so Ray keeps objects on disk; enlarge it (docker --shm-size, in Kubernetes an "
            "emptyDir with medium: Memory), or lower --object-store-memory"
        )
    return f"at least {_gib(min(found['shm'] for found in facts.values()))} on each node, enough for Ray's object store"


def _disk(facts: dict[Node, dict[str, int]]) -> str:
    full = [
        f"{_gib(found['free'])} free on node {node.address}"
        for node, found in facts.items()
        if found["free"] < FREE_DISK or found["free"] < (1 - FULL_DISK) * found["disk"]
    ]
    if full:
        raise ConfigError(
            f"Ray's temporary folder has {nodes.some(full)}, and Ray refuses work on a disk that is {FULL_DISK:.0%} full; "
            "make room, or start Ray with --temp-dir on a larger disk"
        )
    return (
        f"at least {_gib(min(found['free'] for found in facts.values()))} free on each node for Ray's temporary folder"
    )


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def _storage_of(others: list[Node], config: RunConfig) -> str:
    """Check the storage from every other node, because keys, roles and network routes there may differ from this machine's."""
    problems, remedies = [], []
    for node, checks in nodes.ask(others, storage_checks, config, wait=NODE_S).items():
        for check in checks:
            if check.state == "failed":
                problems.append(f"node {node.address}: {check.detail}".replace("; ", ", "))
                remedies.append(check.remedy)
    if problems:
        raise ConfigError(f"{nodes.some(problems).replace('; ', ' · ')}; {remedies[0]}")
    return f"{len(others)} other nodes reach the storage too"


def _local_paths(others: list[Node], config: RunConfig) -> str:
    sources = (*config.image_sources, *config.embedding_sources)
    local = [path for path in map(local_path, sources) if path is not None]
    for path in local:
        check_seen(others, place("images" if config.images is not None else "embeddings", path))
    output = locate(config.output, config.storage)
    if output.scheme == "file":
        probe = output / "_doctor-nodes"
        probe.write_bytes(b"seen")
        try:
            check_seen(others, place("output", probe.path, output.path))
        finally:
            probe.delete()
    if config.images is not None and config.encoder.model.startswith("local-dir:"):
        folder = local_path(config.encoder.model.removeprefix("local-dir:"))
        check_seen(others, place("encoder.model", str(folder)))
    return "every node sees the same files" if local or output.scheme == "file" else "there are none"
