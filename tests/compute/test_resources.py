"""Test that Ray accepts the demands of a run and that the cluster can meet them, for many clusters and settings. This needs no Ray."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import pytest

from raycluster.compute.resources import WRITER_CPUS, Resources, accepted

NODES = (1, 2, 3, 16)
GPUS = (0, 1, 2, 3, 4, 8)
CORES = (1, 2, 3, 4, 8, 16, 96)
ENCODERS = (None, 1, 2, 3, 5, 8, 16)
WORKERS = (None, 1, 2, 3, 8, 16)


def clusters() -> Iterable[tuple[int, int, int, Resources]]:
    """The numbers of nodes, and of GPUs and cores of a node, and the resources of a run with some `encoder_actors` and `train_workers`."""
    for nodes, gpus, cores, encoders, workers in itertools.product(NODES, GPUS, CORES, ENCODERS, WORKERS):
        all_gpus, all_cores = nodes * gpus, nodes * cores
        if (encoders or 1) > max(all_gpus, all_cores) or (workers or 1) > (all_gpus or all_cores):
            continue  # refused by `resolve`
        yield (
            nodes,
            gpus,
            cores,
            Resources(
                float(all_cores),
                cores,
                float(all_gpus),
                encoders or all_gpus or all_cores,
                workers or max(1, all_gpus),
                gpu_cpus=cores / gpus if gpus else None,
            ),
        )


def check(demand: Mapping[str, float], gpus: int) -> None:
    """Check that Ray neither refuses this demand nor waits for it without a message."""
    assert demand
    for amount in demand.values():
        assert amount > 0
        assert amount < 1 or amount == int(amount)
        assert amount == round(amount, 4)
    assert demand.get("num_gpus", 0) <= min(gpus, 1)


def fit(demands: Iterable[Mapping[str, float]], nodes: int, cores: int, gpus: int) -> bool:
    """Whether the demands can be placed one after the other, each on the first node that has room. On equal nodes Ray does the same."""
    free = [[10_000 * cores, *([10_000] * gpus)] for _ in range(nodes)]
    return all(any(_place(node, demand) for node in free) for demand in demands)


def _place(node: list[int], demand: Mapping[str, float]) -> bool:
    cpus, gpu = (round(10_000 * demand.get(name, 0)) for name in ("num_cpus", "num_gpus"))
    card = next((at for at in range(1, len(node)) if node[at] >= gpu), None) if gpu else 0
    if node[0] < cpus or card is None:
        return False
    node[0] -= cpus
    node[card] -= gpu if gpu else 0
    return True


def test_all_demands_of_a_stage_fit_the_cluster_together() -> None:
    seen = 0
    for nodes, gpus, cores, found in clusters():
        seen += 1
        where = f"{nodes} nodes of {cores} cores and {gpus} GPUs, {found.encoder_actors} encoders, {found.train_workers} workers"
        # With GPUs, decode tasks run beside the encoders. Without GPUs, the encoders decode for themselves.
        beside = [found.decode_cpus, WRITER_CPUS] if gpus else [WRITER_CPUS]
        stages = [
            [found.encoder_actor] * found.encoder_actors + [{"num_cpus": cpus} for cpus in beside],
            [worker_demand(found, found.head_worker_cpus)] * found.train_workers,
            [found.heavy_task] * found.heavy_tasks,
        ]
        for sharded in (False, True):
            cpus = found.pixel_cpus(sharded)
            assert cpus.reader + cpus.decode <= cpus.stream + 1e-9, where
            assert not sharded or cpus.reader != cpus.decode, where
            streams = [{"num_cpus": cpus.decode}, *([{"num_cpus": cpus.reader}] if sharded else [])]
            stages.append([worker_demand(found, cpus.worker)] * found.train_workers + streams * found.train_workers)
        for stage in stages:
            for demand in stage:
                check(demand, gpus)
            assert fit(stage, nodes, cores, gpus), f"{where}: {stage[0]} …"
    assert seen > 1000


def worker_demand(found: Resources, cpus: float) -> dict[str, float]:
    return {"num_cpus": cpus, **({"num_gpus": 1} if found.use_gpu else {})}


@pytest.mark.parametrize(
    ("gpus", "actors", "expected"),
    [
        (8, 3, 1.0),  # 8 / 3 is refused by Ray
        (2, 1, 1.0),  # if two nodes have one GPU each, no node has two
        (2, 4, 0.5),
        (2, 3, 0.5),
        (1, 3, 0.3333),
        (1, 7, 0.1428),  # seven times 0.1429 would be more than 1
    ],
)
def test_encoders_have_one_gpu_or_an_equal_share_of_one(gpus: int, actors: int, expected: float) -> None:
    found = Resources(64.0, 64, float(gpus), actors, 1)
    assert found.encoder_actor["num_gpus"] == expected


def test_what_ray_accepts() -> None:
    assert [accepted(x) for x in (2.67, 1.0, 0.99999, 1 / 3, 0.3)] == [2.0, 1.0, 0.9999, 0.3333, 0.3]


def test_gpu_nodes_with_few_cores_beside_many_cpu_nodes() -> None:
    # One node has 8 GPUs and 4 cores, and other nodes have 100 cores: the encoders must fit into the 4 cores.
    found = Resources(104.0, 4, 8.0, 8, 8, gpu_cpus=0.5)
    assert 8 * found.encoder_actor["num_cpus"] <= 1
    assert 8 * found.head_worker_cpus <= 4
    assert 8 * found.pixel_cpus(sharded=True).worker <= 2
    # This GPU node has no cores.
    bare = Resources(100.0, 4, 8.0, 8, 8, gpu_cpus=0.0)
    assert bare.encoder_actor == {"num_cpus": 0.0, "num_gpus": 1.0}
