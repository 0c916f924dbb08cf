"""What a run takes of the cluster: how many encoders and Train workers it has, and what each task and actor reserves.

Ray accepts a demand above one only as a whole number, and it waits for ever, without a message, for a demand that no node can meet. So
every demand here is positive, is for at most one GPU, and is a fraction only below one. All demands of a stage fit the cluster together.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass

import ray
import torch

from raycluster.compute.node_checks import ALONE, Common
from raycluster.compute.nodes import alive, ask, some
from raycluster.config import ResourcesConfig
from raycluster.errors import ConfigError

log = logging.getLogger(__name__)

READER_CPUS = 0.25
"""Most CPUs that the actor which reads shards for a Train worker reserves. It mostly waits for storage."""
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
    """For the whole stream, which may run as many tasks as fit into these CPUs."""


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
    """CPUs per GPU on the node with the fewest CPUs per GPU; None: the CPUs per GPU of the whole cluster."""
    compile_encoder: bool = False
    """Whether encoder actors compile the vision tower."""

    @property
    def use_gpu(self) -> bool:
        """Whether encoders, training and heavy tasks each reserve a GPU. They ask :func:`own_device` for the device to compute on."""
        return self.gpus > 0

    @property
    def _cpus_beside_gpu(self) -> float:
        return self.cpus / self.gpus if self.gpu_cpus is None else self.gpu_cpus

    def threads(self, processes: int) -> int:
        """Return the number of threads for each of `processes` processes that compute on the CPUs."""
        return max(1, min(self.node_cpus // self._on_one_node(processes), int(self.cpus // processes)))

    def _on_one_node(self, processes: int) -> int:
        """Return how many of `processes` processes one node holds at most when they are spread evenly."""
        return min(self.node_cpus, math.ceil(processes / max(1, int(self.cpus) // self.node_cpus)))

    def reserved_cpus(self, processes: int) -> float:
        """Return the CPUs that each of `processes` processes reserves: its share of a node, less one core for tasks that write or decode.

        Without that core, these tasks would wait for the processes, and the processes for them.
        """
        if self.node_cpus == 1:
            return 0.5
        share = self.threads(processes) * (self.node_cpus - 1) / self.node_cpus
        # The cluster as a whole needs the free core too: the driver of a submitted job may hold cores of its only node.
        return accepted(min(share, max(self.cpus - 1, self.cpus / 4) / processes))

    @property
    def encoder_actor(self) -> dict[str, float]:
        """Ray resources of an encoder actor.

        With GPUs it reserves one, or an equal share of one if there are more actors than GPUs. It also reserves a quarter of the CPUs that
        go with this share, at most one CPU: the rest is for decode and write tasks.
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
        last picture is decoded, and a kill would lose everything. Without GPUs it is the same as an encoder's demand: Ray Data fuses
        operators with equal demands, so encoders read and decode for themselves. Separate decode tasks would wait for the cores that
        encoders hold; in measurements they took up to twice as long.
        """
        if not self.use_gpu:
            return self.encoder_actor["num_cpus"]
        return (1.0 if self.node_cpus > 1 else 0.5) - WRITER_CPUS

    @property
    def encoder_calls(self) -> int:
        """Number of blocks that an encoder actor works on at a time.

        With GPUs these are the block that it encodes and the next one, which is unpacked meanwhile. Without GPUs they are the block that it
        encodes and, for each of its threads, one that it reads.
        """
        return 2 if self.use_gpu else 1 + self.threads(self.encoder_actors)

    @property
    def heavy_cpus(self) -> int:
        """All cores of the smallest node but one. A task that reserves every core would wait for ever if anything else holds one."""
        return max(1, self.node_cpus - 1)

    @property
    def heavy_task(self) -> dict[str, float]:
        """Ray resources for a task that computes alone: one GPU, or :attr:`heavy_cpus`."""
        if not self.use_gpu:
            return {"num_cpus": self.heavy_cpus}
        return {"num_cpus": accepted(min(1.0, self._cpus_beside_gpu)), "num_gpus": 1}

    @property
    def heavy_tasks(self) -> int:
        """Number of heavy tasks (:attr:`heavy_task`) that the cluster can run at a time."""
        return max(1, int(self.gpus) if self.use_gpu else int(self.cpus) // self.node_cpus)

    def use_heavy_threads(self) -> None:
        """Let torch use the cores that a heavy task reserves. Call it in the task: its process may have begun with a lighter one."""
        torch.set_num_threads(self.threads(int(self.gpus)) if self.use_gpu else self.heavy_cpus)

    @property
    def head_worker_cpus(self) -> float:
        """CPUs that a Train worker which trains heads reserves, beside its GPU if it has one; 0 on a GPU node without CPUs."""
        if self.use_gpu:
            return self.heavy_task["num_cpus"]
        return self.heavy_cpus if self.train_workers == 1 else accepted(min(1.0, self.cpus / self.train_workers))

    def pixel_cpus(self, sharded: bool) -> PixelCpus:
        """Return how the Train workers of fine-tuning share the CPUs with the streams that read and decode their pictures."""
        workers = self.train_workers
        # The CPUs that a node has for each worker on it.
        room = self._cpus_beside_gpu if self.use_gpu else self.node_cpus / self._on_one_node(workers)
        worker = accepted(min(1.0, room / 2)) if self.use_gpu else self.reserved_cpus(workers)
        stream = (self.cpus - workers * worker) / workers
        # A task that reserved more than its node has left for its worker might wait for the tasks of other workers.
        room = min(stream, room - worker) if room > worker else stream
        # The reader takes a quarter at most: Ray Data would fuse a reader and decode tasks with equal demands into one operator.
        reader = accepted(min(READER_CPUS, room / 4)) if sharded else 0.0
        decode = accepted(min(0.5 if self.node_cpus == 1 else 1.0, room - reader))
        return PixelCpus(worker, reader, decode, stream)


def accepted(amount: float) -> float:
    """Return `amount` rounded down to what Ray accepts: a whole number from one on, four decimals below one."""
    return float(int(amount)) if amount >= 1 else math.floor(amount * 10_000 + 1e-6) / 10_000


def own_device() -> str:
    """Return the torch device of this process: `cuda` if Ray gave it a GPU and torch sees one, else `cpu`.

    Code that computes asks this function, because Ray's count of GPUs is not enough: a node's CUDA driver may be broken, and
    `ray start --num-gpus=2` makes Ray count GPUs that do not exist. The tests use that to run the whole GPU plan on CPUs.
    """
    return "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"


def missing_cuda() -> str:
    """Ask each node with a GPU whether torch sees it, and return a warning that names the nodes where it does not, or an empty text."""
    found = ask([node for node in alive() if node.gpus >= 1], own_device, gpus=1)
    blind = [node.address for node, device in found.items() if device == "cpu"]
    if not blind:
        return ""
    return (
        f"Ray counts GPUs on node {some(blind)}, but PyTorch sees none there: work that reserves them runs on CPUs; install a CUDA build of "
        "torch that the driver supports (`raycluster doctor` shows the reason), or set resources.use_gpu to false"
    )


def _smallest_node_cpus() -> int:
    """Return the CPUs of the smallest node that has any."""
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return max(1, min((n for n in cpus if n > 0), default=1))


def _cpus_per_gpu() -> float:
    """Return the CPUs per GPU on the node with the fewest CPUs per GPU."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return min(node.get("CPU", 0.0) / node["GPU"] for node in nodes if node.get("GPU", 0.0) >= 1)


def _wait_for_nodes(config: ResourcesConfig) -> None:
    """Ask the autoscaler for the nodes that `resources:` wants, and wait for them; nothing stays reserved.

    The request is a placement group, because that ends with this process. A request made by `request_resources` would outlive a kill, and
    would keep GPUs running that nobody uses.
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
    """Fill the gaps of `resources:` from what the cluster has; raises :class:`ConfigError` for what it cannot give."""
    if config.wait_seconds:
        _wait_for_nodes(config)
    cluster = ray.cluster_resources()
    cpus, gpus = cluster.get("CPU", 0.0), int(cluster.get("GPU", 0.0))
    if os.environ.get("RAY_ADDRESS"):
        # Leave out the CPUs that others hold, because our tasks would never get them. The driver of this job, for one, may hold
        # its --entrypoint-num-cpus.
        cpus = ray.available_resources().get("CPU", 0.0) or cpus
    if config.use_gpu and not gpus:
        raise ConfigError(
            "resources.use_gpu is true, but this Ray cluster has no GPU; remove the field, or join a cluster with GPUs"
        )
    if config.use_gpu is False:
        gpus = 0
    if not cpus:
        raise ConfigError(
            "resources: this Ray cluster has no CPU to compute on yet; start worker nodes, or set resources.wait_seconds, "
            "encoder_actors and use_gpu, so that its autoscaler is asked for nodes"
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
            raise ConfigError(f"resources.{field} is {wanted}, but this Ray cluster has {has}; lower it")
