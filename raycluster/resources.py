"""What a run takes of the cluster: how many encoders and Train workers it has, and what each task and actor reserves.

Ray accepts a demand above one only as a whole number, and waits for ever, without a word, for a demand that no node can meet. So every
demand here is positive, at most one GPU, a fraction only below one, and all demands of a stage fit the cluster together.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass

import ray
import torch

from raycluster.config import ResourcesConfig
from raycluster.errors import ConfigError
from raycluster.node_checks import ALONE, Common
from raycluster.nodes import alive, ask, some

log = logging.getLogger(__name__)

READER_CPUS = 0.25
"""Most CPUs that the reader of shards of a Train worker reserves: it mostly waits for storage."""
WRITER_CPUS = 0.25
"""CPUs that a task which writes embeddings reserves."""


@dataclass(frozen=True)
class PixelCpus:
    """CPUs that one Train worker of fine-tuning and its own Ray Data stream reserve."""

    worker: float
    """For the Train worker itself; 0 on a GPU node without CPUs."""
    reader: float
    """For the actor that reads shards; 0 without shards."""
    decode: float
    """For each task that reads and decodes originals, or decodes what the reader read."""
    stream: float
    """For the whole stream: it may run as many tasks as fit in here."""


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
    gpu_cpus: float | None = None
    """CPUs for each GPU on the node that has fewest of them for each; None: as many as in the whole cluster."""
    compile_encoder: bool = False
    """Whether encoder actors compile the vision tower."""

    @property
    def use_gpu(self) -> bool:
        """Whether encoders, training and heavy tasks each reserve a GPU. Where they compute, they ask :func:`own_device`."""
        return self.gpus > 0

    @property
    def _cpus_beside_gpu(self) -> float:
        return self.cpus / self.gpus if self.gpu_cpus is None else self.gpu_cpus

    def threads(self, processes: int) -> int:
        """Threads of each of so many processes that compute on the CPUs."""
        return max(1, min(self.node_cpus // self._on_one_node(processes), int(self.cpus // processes)))

    def _on_one_node(self, processes: int) -> int:
        """The most of so many processes that one node holds when they are spread evenly."""
        return min(self.node_cpus, math.ceil(processes / max(1, int(self.cpus) // self.node_cpus)))

    def reserved_cpus(self, processes: int) -> float:
        """CPUs that each of them reserves: its share of a node of which one core is left for the tasks that write or decode.

        Without that core these tasks would wait for the processes, and the processes for them.
        """
        if self.node_cpus == 1:
            return 0.5
        share = self.threads(processes) * (self.node_cpus - 1) / self.node_cpus
        # The cluster as a whole needs the free core too: the driver of a submitted job may hold cores of its only node.
        return accepted(min(share, max(self.cpus - 1, self.cpus / 4) / processes))

    @property
    def encoder_actor(self) -> dict[str, float]:
        """Ray resources of an encoder actor.

        With GPUs it reserves one, or an equal share of one when there are more actors than GPUs, and a quarter of the CPUs beside it,
        at most one: the rest is for decode and write tasks.
        """
        if not self.use_gpu:
            return {"num_cpus": self.reserved_cpus(self.encoder_actors)}
        actors_per_gpu = math.ceil(self.encoder_actors / int(self.gpus))
        cpus = accepted(min(1.0, self._cpus_beside_gpu / actors_per_gpu / 4))
        return {"num_cpus": cpus, "num_gpus": accepted(1 / actors_per_gpu)}

    @property
    def decode_cpus(self) -> float:
        """CPUs that a task which reads and decodes a block reserves.

        With GPUs it is a core less what a write task reserves: if decoding took whole cores, Ray Data would not write a block before the
        last picture is decoded, and a kill would lose everything. Without GPUs it is the same as an encoder's demand: Ray Data makes one
        operator of equal demands, so encoders read and decode for themselves. Decode tasks beside them would wait for the cores that
        encoders hold, and took up to twice as long.
        """
        if not self.use_gpu:
            return self.encoder_actor["num_cpus"]
        return (1.0 if self.node_cpus > 1 else 0.5) - WRITER_CPUS

    @property
    def encoder_calls(self) -> int:
        """Blocks that an encoder actor has in hand.

        With GPUs these are the block that it encodes and the next one, which is unpacked meanwhile. Without GPUs they are the block that it
        encodes and, for each of its threads, one that it reads.
        """
        return 2 if self.use_gpu else 1 + self.threads(self.encoder_actors)

    @property
    def heavy_cpus(self) -> int:
        """Cores of the smallest node but one: a task that reserved every core would wait for ever beside anything else."""
        return max(1, self.node_cpus - 1)

    @property
    def heavy_task(self) -> dict[str, float]:
        """Ray resources for a task that computes alone: one GPU, or :attr:`heavy_cpus`."""
        if not self.use_gpu:
            return {"num_cpus": self.heavy_cpus}
        return {"num_cpus": accepted(min(1.0, self._cpus_beside_gpu)), "num_gpus": 1}

    @property
    def heavy_tasks(self) -> int:
        """How many such tasks the cluster can run at a time."""
        return max(1, int(self.gpus) if self.use_gpu else int(self.cpus) // self.node_cpus)

    def use_heavy_threads(self) -> None:
        """In such a task: let torch compute on the cores it reserves. The process may have begun with a lighter one."""
        torch.set_num_threads(self.threads(int(self.gpus)) if self.use_gpu else self.heavy_cpus)

    @property
    def head_worker_cpus(self) -> float:
        """CPUs that a Train worker which trains heads reserves, beside its GPU if it has one; 0 on a GPU node without CPUs."""
        if self.use_gpu:
            return self.heavy_task["num_cpus"]
        return self.heavy_cpus if self.train_workers == 1 else accepted(min(1.0, self.cpus / self.train_workers))

    def pixel_cpus(self, sharded: bool) -> PixelCpus:
        """How the Train workers of fine-tuning share the CPUs with the streams that bring their pictures."""
        workers = self.train_workers
        # CPUs of a node for each worker that it holds.
        room = self._cpus_beside_gpu if self.use_gpu else self.node_cpus / self._on_one_node(workers)
        worker = accepted(min(1.0, room / 2)) if self.use_gpu else self.reserved_cpus(workers)
        stream = (self.cpus - workers * worker) / workers
        # A task that took more than its node has left might wait for those of other workers.
        room = min(stream, room - worker) if room > worker else stream
        # A quarter at most: Ray Data would make one operator of a reader and decode tasks whose demands are equal.
        reader = accepted(min(READER_CPUS, room / 4)) if sharded else 0.0
        decode = accepted(min(0.5 if self.node_cpus == 1 else 1.0, room - reader))
        return PixelCpus(worker, reader, decode, stream)


def accepted(amount: float) -> float:
    """The largest amount of a resource that Ray accepts and that is not above this one: whole from one on, four decimals below."""
    return float(int(amount)) if amount >= 1 else math.floor(amount * 10_000 + 1e-6) / 10_000


def own_device() -> str:
    """Torch device of this process: `cuda` if Ray gave it a GPU and torch sees one, else `cpu`.

    Whoever computes asks this, because Ray's count cannot tell: a node's CUDA driver may be broken, and `ray start --num-gpus=2` makes Ray
    count GPUs that do not exist. In the tests that is how the whole GPU plan runs on CPUs.
    """
    return "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"


def missing_cuda() -> str:
    """Ask each node with a GPU whether torch sees it; returns a warning that names the nodes where it does not, or an empty text."""
    found = ask([node for node in alive() if node.gpus >= 1], own_device, gpus=1)
    blind = [node.address for node, device in found.items() if device == "cpu"]
    if not blind:
        return ""
    return (
        f"Ray counts GPUs on node {some(blind)}, but PyTorch sees none there: what reserves them computes on CPUs; install a CUDA build of "
        "torch that the driver supports (`raycluster doctor`), or set resources.use_gpu to false"
    )


def _smallest_node_cpus() -> int:
    """CPUs of the smallest node that has any."""
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return max(1, min((n for n in cpus if n > 0), default=1))


def _cpus_per_gpu() -> float:
    """CPUs for each GPU, of the node that has fewest for each."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return min(node.get("CPU", 0.0) / node["GPU"] for node in nodes if node.get("GPU", 0.0) >= 1)


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
    try:
        came = group.wait(config.wait_seconds)
    finally:
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
    cpus, gpus = cluster.get("CPU", 0.0), int(cluster.get("GPU", 0.0))
    if os.environ.get("RAY_ADDRESS"):
        # What others hold, such as the driver of this job its --entrypoint-num-cpus, nothing of ours would ever get.
        cpus = ray.available_resources().get("CPU", 0.0) or cpus
    if config.use_gpu and not gpus:
        raise ConfigError(
            "resources.use_gpu is true, but this Ray cluster has no GPU: remove it, or join a cluster with GPUs"
        )
    if config.use_gpu is False:
        gpus = 0
    if not cpus:
        raise ConfigError(
            "resources: this Ray cluster has no CPU to compute on yet; start worker nodes, or set resources.wait_seconds, "
            "encoder_actors and use_gpu to what its autoscaler is to be asked for"
        )
    _check_limits(config, int(cluster.get("CPU", 0.0)), gpus)
    return Resources(
        cpus,
        _smallest_node_cpus(),
        float(gpus),
        config.encoder_actors or max(1, gpus or int(cpus)),
        config.train_workers or max(1, gpus),
        gpu_cpus=_cpus_per_gpu() if gpus else None,
        compile_encoder=config.compile_encoder,
    )


def _check_limits(config: ResourcesConfig, cpus: int, gpus: int) -> None:
    workers = (gpus, f"{gpus} GPUs") if gpus else (cpus, f"{cpus} CPUs")
    # Several encoders may share a GPU, but each is a process that keeps a core busy.
    encoders = (max(gpus, cpus), f"{gpus} GPUs and {cpus} CPUs") if gpus else workers
    for field, wanted, (most, has) in (
        ("encoder_actors", config.encoder_actors, encoders),
        ("train_workers", config.train_workers, workers),
    ):
        if wanted and wanted > most:
            raise ConfigError(f"resources.{field} is {wanted}, but this Ray cluster has {has}: lower it")
