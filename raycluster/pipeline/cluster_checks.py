"""What every node of a cluster must have for one run: the run folder, some of the pictures, and the encoder's weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import chain

from raycluster.compute.node_checks import Common, Place, check_seen, local_path, own_node, place, versions_question
from raycluster.compute.nodes import Node, ask, others
from raycluster.config import EncoderConfig, RunConfig
from raycluster.encoder.clip import EncoderSpec, resolve_encoder
from raycluster.errors import ConfigError
from raycluster.images.addresses import container_of
from raycluster.storage.location import Location
from raycluster.storage.lock import LOCK_FILE


def find_common(
    config: RunConfig,
    root: Location,
    samples: Iterable[Sequence[str]],
    spec: EncoderSpec | None,
    source: str = "images",
) -> Common:
    """Return what every node must have for this run. Raises :class:`ConfigError` if a node that is there now lacks any of it.

    `root`: the run folder; `samples`: URIs of some pictures of each source, or of files that hold them; `spec`: the encoder, None if there
    is none; `source`: the field of the configuration that names the sources, for messages.
    """
    places = _output(root)
    if spec is not None and spec.tower is not None and spec.tower.file.scheme == "file":
        places.append(place("model", spec.tower.file.path))
    places += [place(source, path) for path in dict.fromkeys(chain(*map(_files_here, samples)))]
    nodes = others()
    check_seen(nodes, *places)
    if nodes and spec is not None and (field := local_weights(spec)):
        _check_weights(field, config.encoder, spec, [node for node in nodes if node.gpus > 0] or nodes)
    return _common(places)


def find_common_output(root: Location) -> Common:
    """Return what every node must have to write in a run folder. Raises :class:`ConfigError` if a node that is there now lacks it."""
    places = _output(root)
    check_seen(others(), *places)
    return _common(places)


def _common(places: Sequence[Place]) -> Common:
    return Common(own_node().id, tuple(versions_question()().items()), tuple(places))


def _output(root: Location) -> list[Place]:
    """Return the lock of a run folder on this machine's disk: it tells the folder from others at the same path."""
    lock = root / LOCK_FILE
    return [place("output", lock.path, root.path)] if root.scheme == "file" and lock.exists() else []


def local_weights(spec: EncoderSpec) -> str | None:
    """Return the field that names weights on this machine's disk; None for a hub tag, which every node fetches by itself."""
    if spec.model.startswith("local-dir:"):
        return "encoder.model"
    return "encoder.pretrained" if spec.pretrained and os.path.isabs(spec.pretrained) else None


def _files_here(uris: Sequence[str]) -> list[str]:
    """Return the first and the last file of a source on this machine's disk: a picture, or the tar or table that holds pictures."""
    paths = [local_path(container_of(uri)) for uri in uris]
    here = [path for path in paths if path is not None and os.path.exists(path)]
    return here[:1] + here[-1:]


def _check_weights(field: str, config: EncoderConfig, spec: EncoderSpec, nodes: list[Node]) -> None:
    given = config.model_copy(update={"model": spec.model, "pretrained": spec.pretrained})

    def resolved() -> tuple[str, str]:
        """Return the fingerprint of the encoder, or why there is none."""
        try:
            return resolve_encoder(given, spec.precision != "fp32").fingerprint, ""
        except ConfigError as error:
            return "", str(error)

    # Ask this process too: the fingerprint in `spec` may differ, because it also covers a tuned tower and the precision of its run.
    here = resolved()
    for node, found in ask(nodes, resolved).items():
        if found != here:
            _, problem = found
            what = f"it cannot be used ({problem})" if problem else "it holds other weights"
            raise ConfigError(
                f"{field}: {spec.pretrained or spec.model} is on this machine's disk, but on node {node.address} {what}; on several nodes, put "
                "the weights into a bucket (s3://…), put the same files at the same path on every node (in the image), or name a weight tag"
            )
