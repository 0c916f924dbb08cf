"""What the nodes of a joined cluster must have in common: the same versions, and every local path a run names.

Ray itself compares only its own version and Python's, and only when a process joins. Other differences would show late and in confusing
ways: as a missing attribute, or as half of the images with the status `missing`. Before it begins, a run asks the nodes that are there.
Nodes that join later, such as those of an autoscaler, are checked by the work that comes to them, before that work begins.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any, TypeVar

import ray

from raycluster.compute.nodes import ANSWER_S, Node, alive, ask, some
from raycluster.errors import ConfigError
from raycluster.storage.lock import LOCK_FILE

Result = TypeVar("Result")

SAME_VERSIONS = "give all nodes the same container image (cluster_configs/Dockerfile), and submit with `--working-dir .`, which sends this code to all of them"


@dataclass(frozen=True)
class Place:
    """A file or folder of this machine's disk."""

    field: str
    """Field of the configuration that messages name."""
    path: str
    shown: str
    """The path that messages name."""
    identity: Any
    """What tells it from another file or folder at the same path (:func:`_identity`)."""


@dataclass(frozen=True)
class Common:
    """What every node of a run must have, whenever it joins. It is sent to the nodes with the work."""

    node: str = ""
    """Id of the driver's node."""
    versions: tuple[tuple[str, str], ...] = ()
    places: tuple[Place, ...] = ()


ALONE = Common()
"""No requirements, because nothing could differ."""


def versions_question() -> Callable[[], dict[str, str]]:
    """Return a function that returns the versions of the machine where it is called.

    It is a local function so that it is pickled by value, because raycluster may be absent on a node.
    """

    def versions() -> dict[str, str]:
        found = {"python": platform.python_version()}
        for package in ("ray", "torch"):
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                found[package] = "absent"
        spec = importlib.util.find_spec("raycluster")
        if spec is None or spec.origin is None:
            return {**found, "raycluster": "absent"}
        # Compare the code itself: a version number stays the same while one edits, and a working directory hides an installed package.
        digest = hashlib.sha256()
        for file in sorted(Path(spec.origin).parent.rglob("*.py")):
            digest.update(file.read_bytes())
        return {**found, "raycluster": f"code {digest.hexdigest()[:12]}"}

    return versions


def differences(here: Mapping[str, str], there: Mapping[Node, Mapping[str, str]]) -> list[str]:
    """Return one sentence for each version that a node has and the driver has not."""
    return [
        f"{package} is {found[package]} on node {node.address} and {here[package]} here"
        for node, found in there.items()
        for package in here
        if found[package] != here[package]
    ]


def check_versions(wait: float = ANSWER_S) -> None:
    """Raise :class:`ConfigError` where a node has another version of Python, Ray, torch or raycluster than this process."""
    question = versions_question()
    _refuse_differences(question(), ask(alive(), question, wait=wait))


def checked(work: Callable[..., Result], common: Common) -> Callable[..., Result]:
    """Return `work` with a call of :func:`check_here` before it, for functions that Ray may place on any node."""

    @wraps(work)
    def done(*args: Any, **kwargs: Any) -> Result:
        check_here(common)
        return work(*args, **kwargs)

    return done


@cache
def check_here(common: Common) -> None:
    """Raise :class:`ConfigError` if the node of this process lacks what every node of the run must have.

    The check runs once per process. It leaves out the weights: :meth:`ClipEncoder.load` refuses weights other than the driver's.
    """
    if common != ALONE and (here := own_node()).id != common.node:
        _refuse_differences(dict(common.versions), {here: versions_question()()})
        _refuse_unseen({here: _unseen(common.places)})


def place(field: str, path: str, shown: str | None = None) -> Place:
    """Return a file or folder as this process sees it."""
    return Place(field, path, shown or path, _identity(path))


def check_seen(nodes: list[Node], *places: Place) -> None:
    """Raise :class:`ConfigError` if a node does not see the same files and folders at these places."""
    if nodes and places:
        _refuse_unseen(ask(nodes, _unseen, places))


def local_path(uri: str) -> str | None:
    """Return the path of a local address; None for object storage."""
    scheme, separator, rest = uri.partition("://")
    return None if separator and scheme != "file" else os.path.abspath(os.path.expanduser(rest or uri))


def own_node() -> Node:
    """Return the node of this process; its CPUs and GPUs are not counted."""
    return Node(ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), 0, 0)


def _unseen(places: Iterable[Place]) -> list[Place]:
    """Return the places that are not the same where this is called."""
    return [each for each in places if _identity(each.path) != each.identity]


def _identity(path: str) -> Any:
    """Return what tells a file or folder from another at the same path; None if it cannot be read.

    For a file this is its size and a hash of its beginning, and for a folder the names in it. The lock of a run is rewritten at every
    heartbeat, so for a lock it is the time that its holder wrote as `since`.
    """
    if os.path.isdir(path):
        return tuple(sorted(os.listdir(path)))
    try:
        with open(path, "rb") as stream:
            content = stream.read(2**16)
    except OSError:
        return None
    if path.endswith(LOCK_FILE):
        return json.loads(content)["since"]
    return hashlib.sha256(content).hexdigest(), os.path.getsize(path)


def _refuse_differences(here: Mapping[str, str], there: Mapping[Node, Mapping[str, str]]) -> None:
    if problems := differences(here, there):
        raise ConfigError(f"ray: {some(problems)}; {SAME_VERSIONS}")


def _refuse_unseen(found: Mapping[Node, list[Place]]) -> None:
    blind: dict[tuple[str, str], list[str]] = {}
    for node, places in found.items():
        for each in places:
            blind.setdefault((each.field, each.shown), []).append(node.address)
    for (field, shown), addresses in blind.items():
        raise ConfigError(
            f"{field}: {shown} is on this machine's disk, and node {', '.join(addresses[:3])} does not see the same content there; "
            "on several nodes use s3://…, or a disk that all of them mount at this path"
        )
