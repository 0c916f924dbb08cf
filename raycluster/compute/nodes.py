"""The nodes of the cluster, and questions to each of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycluster.compute import work
from raycluster.errors import RayclusterError

log = logging.getLogger(__name__)

ANSWER_S = 900.0
"""Longest wait for the answers of all nodes, in seconds. A node may first have to install a runtime environment."""
ENDED_S = 5.0
"""Longest wait for the end of abandoned questions, in seconds."""
PATIENT_S = 30.0
"""Seconds of waiting after which a line of the log explains the wait."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster that is alive."""

    id: str
    address: str
    cpus: float
    gpus: float

    @property
    def computes(self) -> bool:
        """Whether tasks of a run come here. They do not come to a head with `num-cpus: 0`."""
        return self.cpus > 0 or self.gpus > 0


def alive() -> list[Node]:
    """Return the nodes of the cluster that are alive."""
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
    """Call `question(*shared)` once on each node, with `gpus` of its GPUs, and return the answers. Nodes that died meanwhile are left out.

    Raises :class:`RayclusterError` for a node that does not answer within `wait` seconds.
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
    # A question writes nothing, so a question to a node that hangs is not worth a long wait for its end.
    tasks = work.Tasks(*asked)
    with work.ending(lambda: tasks.end(longest=ENDED_S)):
        return _answered(asked, nodes, wait)


def _answered(asked: dict[ray.ObjectRef, Node], nodes: list[Node], wait: float) -> dict[Node, Any]:
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
    """Return the answer of a node in a list, which is empty if the node died meanwhile, as spot instances do."""
    try:
        return [ray.get(reference)]
    except (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError):
        log.info("ray: node %s went away", node.address)
        return []
    except ray.exceptions.RuntimeEnvSetupError as error:
        raise RayclusterError(
            f"ray: node {node.address} cannot install the job's runtime environment ({' '.join(str(error).split())[-300:]}); "
            "correct the file given as --runtime-env, or use a container image that needs none (cluster_configs/Dockerfile)"
        ) from error


def others() -> list[Node]:
    """Return the nodes, besides this process's own, to which tasks of a run may come."""
    own = ray.get_runtime_context().get_node_id()
    return [node for node in alive() if node.computes and node.id != own]


def some(sentences: list[str], shown: int = 3) -> str:
    """Return the first `shown` of these sentences as one, and how many more there are."""
    more = f"; and {len(sentences) - shown} more" if len(sentences) > shown else ""
    return "; ".join(sentences[:shown]) + more
