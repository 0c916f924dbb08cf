"""What a run takes of the cluster: so many encoders and Train workers, and the cores that each of its tasks reserves."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import ray
import torch

from raycluster.config import ResourcesConfig
from raycluster.errors import ConfigError
from raycluster.node_checks import ALONE, Common

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resources:
    """What a run uses of the cluster."""

    cpus: float
    node_cpus: int
    """CPUs of the smallest node."""
    gpus: float
    encoder_actors: int
    train_workers: int
    common: Common = ALONE
    """What every node must have."""

    @property
    def use_gpu(self) -> bool:
        """Whether models run on GPUs."""
        return self.gpus > 0

    def threads(self, processes: int) -> int:
        """Threads of each of so many processes that compute on the CPUs."""
        return max(1, min(self.node_cpus, int(self.cpus // processes)))

    def reserved_cpus(self, processes: int) -> float:
        """CPUs that each of them reserves: its share of a node of which one core is left for the tasks that write or decode.

        Without that core these would wait for the processes, and the processes for them.
        """
        if self.node_cpus == 1:
            return 0.5
        share = self.threads(processes) * (self.node_cpus - 1) / self.node_cpus
        # The same for the cluster as a whole: a submitted job's driver may hold cores of its only node.
        share = min(share, max(self.cpus - 1, self.cpus / 4) / processes)
        return share if share < 1 else float(int(share))  # Ray takes fractions below one only

    @property
    def device(self) -> str:
        """Torch device of everything that computes: `cuda` or `cpu`."""
        return "cuda" if self.use_gpu else "cpu"

    @property
    def encoder_actor(self) -> dict[str, float]:
        """Ray resources of an encoder actor."""
        return (
            {"num_gpus": self.gpus / self.encoder_actors}
            if self.use_gpu
            else {"num_cpus": self.reserved_cpus(self.encoder_actors)}
        )

    @property
    def decode_cpus(self) -> float:
        """CPUs that reading and decoding a block reserves: with GPUs, of one core what :attr:`writer_cpus` leaves; with a whole one Ray
        Data would not write a block before the last picture is decoded, and a kill would lose everything.

        Without them the same as an encoder: of equal demands Ray Data makes one operator, and the encoders read and decode for
        themselves. Tasks beside them would wait for cores that encoders hold, and took up to twice as long.
        """
        one = 1.0 if self.node_cpus > 1 else 0.5
        return one - self.writer_cpus if self.use_gpu else self.encoder_actor["num_cpus"]

    @property
    def encoder_calls(self) -> int:
        """Blocks that an encoder actor has in hand: without GPUs one that it encodes, and for each of its threads one that it reads."""
        return 1 if self.use_gpu else 1 + self.threads(self.encoder_actors)

    @property
    def writer_cpus(self) -> float:
        """CPUs that a write task reserves."""
        return 0.25

    @property
    def heavy_cpus(self) -> int:
        """Cores of the smallest node but one: a task that reserved every core would wait for ever beside anything else."""
        return max(1, self.node_cpus - 1)

    @property
    def heavy_task(self) -> dict[str, float]:
        """Ray resources for a task that runs alone: one GPU, or :attr:`heavy_cpus`."""
        return {"num_cpus": 1, "num_gpus": 1} if self.use_gpu else {"num_cpus": self.heavy_cpus}

    def use_heavy_threads(self) -> None:
        """In such a task: let torch compute on the cores it reserves. The process may have begun with a lighter one."""
        if not self.use_gpu:
            torch.set_num_threads(self.heavy_cpus)


def _smallest_node_cpus() -> int:
    """CPUs of the smallest node that has any."""
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return max(1, min((n for n in cpus if n > 0), default=1))


def _wait_for_nodes(config: ResourcesConfig) -> None:
    """Ask the autoscaler for the nodes that `resources:` wants, and wait for them; nothing stays reserved.

    A placement group is the request that ends with this process: one made by `request_resources` would outlive a kill and keep
    GPUs up that nobody uses.
    """
    wanted = max(config.encoder_actors or 1, config.train_workers or 1)
    kind = "GPU" if config.use_gpu else "CPU"
    if ray.cluster_resources().get(kind, 0) >= wanted:
        return
    log.info("ray: waiting up to %.0f s for %d %ss", config.wait_seconds, wanted, kind)
    group = ray.util.placement_group([{kind: 1}] * wanted)
    came = group.wait(config.wait_seconds)
    ray.util.remove_placement_group(group)
    if not came:
        raise ConfigError(
            f"resources.wait_seconds: in {config.wait_seconds:.0f} s the cluster has grown to {ray.cluster_resources().get(kind, 0):.0f} of "
            f"{wanted} {kind}s; see `ray status` for what its autoscaler says, wait longer, or lower resources.encoder_actors and train_workers"
        )


def resolve(config: ResourcesConfig) -> Resources:
    """Fill the gaps of `resources:` from the cluster; raises :class:`ConfigError` for what it cannot give."""
    if config.wait_seconds:
        _wait_for_nodes(config)
    cluster = ray.cluster_resources()
    cpus, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    if os.environ.get("RAY_ADDRESS"):
        # What others hold, such as the driver of this job its --entrypoint-num-cpus, nothing of ours would ever get.
        cpus = ray.available_resources().get("CPU", 0.0) or cpus
    if config.use_gpu and not gpus:
        raise ConfigError(
            "resources.use_gpu is true, but this Ray cluster has no GPU: remove it, or join a cluster with GPUs"
        )
    if config.use_gpu is False:
        gpus = 0.0
    if not cpus:
        raise ConfigError(
            "resources: this Ray cluster has no CPU to compute on yet; start worker nodes, or set resources.wait_seconds, "
            "encoder_actors and use_gpu to what its autoscaler is to be asked for"
        )
    limit = int(gpus) if gpus else int(cluster.get("CPU", 0.0))
    for field, wanted in (("encoder_actors", config.encoder_actors), ("train_workers", config.train_workers)):
        if wanted and wanted > limit:
            kind = "GPUs" if gpus else "CPUs"
            raise ConfigError(f"resources.{field} is {wanted}, but this Ray cluster has {limit} {kind}: lower it")
    return Resources(
        cpus,
        _smallest_node_cpus(),
        gpus,
        config.encoder_actors or max(1, int(gpus or cpus)),
        config.train_workers or max(1, int(gpus)),
    )
