"""What the nodes of a joined cluster must have in common: the same versions, and every local path a run names.

Ray itself compares only its own version and Python's, and only when a process joins. Everything else that differs would show
late and oddly: as an attribute that is missing, or as half of the images `missing`. A run asks the nodes there are before it begins; those that
join later, as an autoscaler's do, are asked by the work that comes to them, before it does any.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import ray

from raycluster.config import EncoderConfig, RunConfig
from raycluster.errors import ConfigError
from raycluster.images.containers import container_of
from raycluster.lock import LOCK_FILE
from raycluster.nodes import ANSWER_S, Node, alive, ask, others, some
from raycluster.storage import Location

if TYPE_CHECKING:
    from raycluster.encoder.clip import EncoderSpec

Result = TypeVar("Result")

SAME_VERSIONS = "give all nodes one image (cluster_configs/Dockerfile), and submit with `--working-dir .`, which sends this code to all of them"


@dataclass(frozen=True)
class Place:
    """A file or folder of this machine's disk."""

    field: str
    """Of the configuration."""
    path: str
    shown: str
    """What messages name."""
    identity: Any
    """What tells it from another of that name (:func:`_identity`)."""


@dataclass(frozen=True)
class Common:
    """What every node of a run must have, whenever it joins; travels with the work."""

    node: str = ""
    """Id of the driver's."""
    versions: tuple[tuple[str, str], ...] = ()
    places: tuple[Place, ...] = ()


ALONE = Common()
"""Nothing that could differ."""


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
    """Versions that nodes have and the driver has not, one sentence each."""
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


def find_common(
    config: RunConfig, root: Location, samples: Iterable[Sequence[str]], spec: EncoderSpec | None
) -> Common:
    """What every node must have for this run; raises :class:`ConfigError` if one of those there are has it not.

    `root`: the run folder; `samples`: URIs of some pictures of each source; `spec`: the encoder, None if there is none.
    """
    places = []
    if root.scheme == "file" and (lock := root / LOCK_FILE).exists():
        places.append(place("output", lock.path, root.path))
    if spec is not None and spec.tower is not None and spec.tower.file.scheme == "file":
        places.append(place("model", spec.tower.file.path))
    places += [place("images", path) for path in dict.fromkeys(chain(*map(_files_here, samples)))]
    nodes = others()
    check_seen(nodes, *places)
    if nodes and spec is not None and (field := local_weights(spec)):
        _check_weights(field, config.encoder, spec, [node for node in nodes if node.gpus > 0] or nodes)
    return Common(_own_node().id, tuple(versions_question()().items()), tuple(places))


def checked(work: Callable[..., Result], common: Common) -> Callable[..., Result]:
    """The same function, which calls :func:`check_here` before it does anything: for what Ray may place on any node."""

    @wraps(work)
    def done(*args: Any, **kwargs: Any) -> Result:
        check_here(common)
        return work(*args, **kwargs)

    return done


@cache
def check_here(common: Common) -> None:
    """In a process that is to work for a run: raises :class:`ConfigError` if its node has not what it must have.

    Once a process. Weights are not looked at: who loads others than the driver's is refused there (:meth:`ClipEncoder.load`).
    """
    if common != ALONE and (here := _own_node()).id != common.node:
        _refuse_differences(dict(common.versions), {here: versions_question()()})
        _refuse_unseen({here: _unseen(common.places)})


def place(field: str, path: str, shown: str | None = None) -> Place:
    """A file or folder as it is seen here."""
    return Place(field, path, shown or path, _identity(path))


def check_seen(nodes: list[Node], *places: Place) -> None:
    """Raise :class:`ConfigError` if a node does not see the same there."""
    if nodes and places:
        _refuse_unseen(ask(nodes, _unseen, places))


def local_path(uri: str) -> str | None:
    """The path of a local address; None for object storage."""
    scheme, separator, rest = uri.partition("://")
    return None if separator and scheme != "file" else os.path.abspath(os.path.expanduser(rest or uri))


def local_weights(spec: EncoderSpec) -> str | None:
    """The field that names weights on this machine's disk; None for a hub tag, which every node fetches by itself."""
    if spec.model.startswith("local-dir:"):
        return "encoder.model"
    return "encoder.pretrained" if spec.pretrained and os.path.isabs(spec.pretrained) else None


def _own_node() -> Node:
    return Node(ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), 0, 0)


def _files_here(uris: Sequence[str]) -> list[str]:
    """The first and the last file of a source that is on this machine's disk: a picture, or the tar or table that holds it."""
    paths = [local_path(container_of(uri)) for uri in uris]
    here = [path for path in paths if path is not None and os.path.exists(path)]
    return here[:1] + here[-1:]


def _unseen(places: Iterable[Place]) -> list[Place]:
    """Those that are not the same where this is called."""
    return [each for each in places if _identity(each.path) != each.identity]


def _identity(path: str) -> Any:
    """What tells a file from another of that name: its size and beginning; of a lock, which is written anew, its holder; a folder's names."""
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
            f"{field}: {shown} is on this machine's disk, and node {', '.join(addresses[:3])} does not see the same there; "
            "on several nodes use s3://…, or a disk that all of them mount at this path"
        )


def _check_weights(field: str, config: EncoderConfig, spec: EncoderSpec, nodes: list[Node]) -> None:
    given = config.model_copy(update={"model": spec.model, "pretrained": spec.pretrained})

    def resolved() -> str:
        from raycluster.encoder.clip import resolve_encoder

        try:
            return resolve_encoder(given, spec.precision != "fp32").fingerprint
        except ConfigError as error:
            return str(error)

    # Asked here as well: the fingerprint in `spec` also covers a tuned tower, and the precision of the run that made it.
    here = resolved()
    for node, found in ask(nodes, resolved).items():
        if found != here:
            what = "holds other weights there" if len(found) == len(here) else f"cannot be used there ({found})"
            raise ConfigError(
                f"{field}: {spec.pretrained or spec.model} is on this machine's disk, and on node {node.address} it {what}; on several "
                "nodes put them into a bucket (s3://…), or the same files at the same path everywhere (in the image), or name a weight tag"
            )
