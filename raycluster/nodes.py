"""What the nodes of a joined cluster must have in common: the same versions, and every local path a run names.

Ray itself compares only its own version and Python's, and only when a process joins. Everything else that differs would show
late and oddly: as an attribute that is missing, or as half of the images `missing`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycluster.config import EncoderConfig, RunConfig
from raycluster.errors import ConfigError, RayclusterError
from raycluster.lock import LOCK_FILE
from raycluster.storage import Location

if TYPE_CHECKING:
    from raycluster.encoder.clip import EncoderSpec

log = logging.getLogger(__name__)

ANSWER_S = 900.0
"""Longest wait for an answer of every node, in seconds: a node may first have to install a runtime environment."""
PATIENT_S = 30.0
"""A longer wait than this is explained."""
SAME_VERSIONS = "give all nodes one image (cluster_configs/Dockerfile), and submit with `--working-dir .`, which sends this code to all of them"


@dataclass(frozen=True)
class Node:
    """A node of the cluster that is alive."""

    id: str
    address: str
    cpus: float
    gpus: float

    @property
    def computes(self) -> bool:
        """Whether tasks of a run come here: not to a head with `num-cpus: 0`."""
        return self.cpus > 0 or self.gpus > 0


def alive() -> list[Node]:
    """The nodes of the cluster."""
    return [
        Node(
            each["NodeID"],
            each["NodeManagerAddress"],
            each["Resources"].get("CPU", 0.0),
            each["Resources"].get("GPU", 0.0),
        )
        for each in ray.nodes()
        if each["Alive"]
    ]


def ask(
    nodes: list[Node], question: Callable[..., Any], *shared: Any, wait: float = ANSWER_S, gpus: int = 0
) -> dict[Node, Any]:
    """Call `question(*shared)` once on each node, with so many of its GPUs; answers of nodes that died meanwhile are left out.

    Raises :class:`RayclusterError` for a node that does not answer in `wait` seconds.
    """
    asked = {
        ray.remote(
            num_cpus=0,
            num_gpus=gpus,
            max_retries=1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        )(question).remote(*shared): node
        for node in nodes
    }
    found: dict[Node, Any] = {}
    left, started = list(asked), time.monotonic()
    while left:
        spent = time.monotonic() - started
        done, left = ray.wait(left, num_returns=len(left), timeout=min(PATIENT_S, max(0.0, wait - spent)))
        found |= {asked[reference]: answer for reference in done for answer in _answers(reference, asked[reference])}
        living = {node.id for node in alive()} if left else set()
        left = [reference for reference in left if asked[reference].id in living]
        names = ", ".join(asked[reference].address for reference in left)
        if left and time.monotonic() - started >= wait:
            raise RayclusterError(
                f"ray: no answer from node {names} in {wait:.0f} s; look at its logs in Ray's dashboard, or remove it from the cluster"
            )
        if left:
            log.info("ray: waiting for node %s, which may still be installing its runtime environment", names)
    return {node: found[node] for node in nodes if node in found}


def _answers(reference: ray.ObjectRef, node: Node) -> list[Any]:
    """The answer of a node; none of one that died meanwhile, as spot instances do."""
    try:
        return [ray.get(reference)]
    except (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError):
        log.info("ray: node %s went away", node.address)
        return []
    except ray.exceptions.RuntimeEnvSetupError as error:
        raise RayclusterError(
            f"ray: node {node.address} cannot install the job's runtime environment ({' '.join(str(error).split())[-300:]}); "
            "mend the file given as --runtime-env, or use an image that needs none (cluster_configs/Dockerfile)"
        ) from error


def versions_question() -> Callable[[], dict[str, str]]:
    """A function that tells the versions where it is called. Made here, it travels by value: raycluster may be absent there."""

    def versions() -> dict[str, str]:
        import hashlib
        import importlib.metadata
        import importlib.util
        import platform
        from pathlib import Path

        found = {"python": platform.python_version()}
        for package in ("ray", "torch"):
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                found[package] = "absent"
        spec = importlib.util.find_spec("raycluster")
        if spec is None or spec.origin is None:
            return {**found, "raycluster": "absent"}
        # The code itself: a version number stays while one edits, and a working directory hides an installed package.
        digest = hashlib.sha256()
        for file in sorted(Path(spec.origin).parent.rglob("*.py")):
            digest.update(file.read_bytes())
        return {**found, "raycluster": f"code {digest.hexdigest()[:12]}"}

    return versions


def differences(here: Mapping[str, str], there: Mapping[Node, Mapping[str, str]]) -> list[str]:
    """Versions that nodes have and this process has not, one sentence each."""
    return [
        f"{package} is {found[package]} on node {node.address} and {here[package]} here"
        for node, found in there.items()
        for package in here
        if found[package] != here[package]
    ]


def check_versions(wait: float = ANSWER_S) -> None:
    """Raise :class:`ConfigError` where a node has another version of Python, Ray, torch or raycluster than this process."""
    question = versions_question()
    problems = differences(question(), ask(alive(), question, wait=wait))
    if problems:
        raise ConfigError(f"ray: {some(problems)}; {SAME_VERSIONS}")


def others() -> list[Node]:
    """The nodes besides this process's own to which tasks of a run may come."""
    own = ray.get_runtime_context().get_node_id()
    return [node for node in alive() if node.computes and node.id != own]


def check_places(config: RunConfig, root: Location, uris: pa.ChunkedArray, spec: EncoderSpec | None) -> None:
    """What a run names by a local path must be there on every node, the same; raises :class:`ConfigError`.

    `root`: the run folder; `uris`: those of the manifest; `spec`: the encoder, None if there is none.
    """
    nodes = others()
    if not nodes:
        return
    if root.scheme == "file" and (lock := root / LOCK_FILE).exists():
        check_seen("output", nodes, [lock.path], root.path)
    pictures = [path for path in map(local_path, _ends(uris)) if path is not None and os.path.exists(path)]
    if pictures:
        check_seen("images", nodes, pictures, pictures[0])
    if spec is not None and (field := local_weights(spec)):
        _check_weights(field, config.encoder, spec, [node for node in nodes if node.gpus > 0] or nodes)


def check_seen(field: str, nodes: list[Node], paths: list[str], shown: str) -> None:
    """Raise :class:`ConfigError` if a node does not see the same files or folders at these paths; `shown` is the one the message names."""
    here = _identities(paths)
    blind = [node.address for node, seen in ask(nodes, _identities, paths).items() if seen != here]
    if blind:
        raise ConfigError(
            f"{field}: {shown} is on this machine's disk, and node {', '.join(blind[:3])} does not see it; "
            "on several nodes use s3://…, or a disk that all of them mount at this path"
        )


def _identities(paths: list[str]) -> dict[str, Any]:
    return {path: _identity(path) for path in paths}


def _identity(path: str) -> Any:
    """What tells a file from another of that name: its size and beginning; of a lock, which is written anew, its holder; a folder's names."""
    if os.path.isdir(path):
        return sorted(os.listdir(path))
    try:
        with open(path, "rb") as stream:
            content = stream.read(2**16)
    except OSError:
        return None
    if path.endswith(LOCK_FILE):
        return json.loads(content)["since"]
    return hashlib.sha256(content).hexdigest(), os.path.getsize(path)


def _ends(uris: pa.ChunkedArray) -> list[str]:
    """The first and the last of them; several sources lie one after the other."""
    return [uris[0].as_py(), uris[len(uris) - 1].as_py()] if len(uris) else []


def local_path(uri: str) -> str | None:
    """The path of a local address; None for object storage."""
    scheme, separator, rest = uri.partition("://")
    return None if separator and scheme != "file" else os.path.abspath(os.path.expanduser(rest or uri))


def local_weights(spec: EncoderSpec) -> str | None:
    """The field that names weights on this machine's disk; None for a hub tag, which every node fetches by itself."""
    if spec.model.startswith("local-dir:"):
        return "encoder.model"
    return "encoder.pretrained" if spec.pretrained and os.path.isabs(spec.pretrained) else None


def _check_weights(field: str, config: EncoderConfig, spec: EncoderSpec, nodes: list[Node]) -> None:
    given = config.model_copy(update={"model": spec.model, "pretrained": spec.pretrained})

    def resolved() -> str:
        from raycluster.encoder.clip import resolve_encoder

        try:
            return resolve_encoder(given, spec.precision != "fp32").fingerprint
        except ConfigError as error:
            return str(error)

    for node, found in ask(nodes, resolved).items():
        if found != spec.fingerprint:
            what = (
                "holds other weights there"
                if len(found) == len(spec.fingerprint)
                else f"cannot be used there ({found})"
            )
            raise ConfigError(
                f"{field}: {spec.pretrained or spec.model} is on this machine's disk, and on node {node.address} it {what}; on several "
                "nodes put them into a bucket (s3://…), or the same files at the same path everywhere (in the image), or name a weight tag"
            )


def some(sentences: list[str], shown: int = 3) -> str:
    """The first of them as one sentence."""
    more = f"; and {len(sentences) - shown} more" if len(sentences) > shown else ""
    return "; ".join(sentences[:shown]) + more
