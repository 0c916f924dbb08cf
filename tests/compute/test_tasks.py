"""Test tasks on Ray: their results, their errors, and the resources that a run takes by default."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import ray

from raycluster.compute.errors import raised_in_task
from raycluster.compute.node_checks import ALONE
from raycluster.compute.resources import WRITER_CPUS, resolve
from raycluster.compute.streaming import streaming
from raycluster.compute.tasks import map_tasks
from raycluster.config import ResourcesConfig
from raycluster.errors import ConfigError, DataQualityError, RayclusterError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def test_tasks_get_the_item_and_the_shared_values() -> None:
    shared = ray.put({"add": 100})
    found = map_tasks(lambda item, more: item + more["add"], range(23), shared, common=ALONE, in_flight=3)
    assert sorted(found) == list(range(100, 123))


def test_no_items_are_no_tasks() -> None:
    assert list(map_tasks(lambda item: item, [], common=ALONE)) == []


def test_our_errors_come_out_of_tasks_and_of_ray_data_as_they_were() -> None:
    def fail(item: object) -> None:
        raise DataQualityError("the plain message")

    with pytest.raises(RayclusterError) as caught:
        list(map_tasks(fail, [1], common=ALONE))
    found = raised_in_task(caught.value)
    assert found is not None
    assert str(found) == "the plain message"
    assert found.exit_code == 3
    context = ray.data.DataContext.get_current().copy()
    context.raise_original_map_exception = True
    with ray.data.DataContext.current(context), pytest.raises(Exception, match="plain message") as streamed:
        ray.data.range(2).map_batches(fail).materialize()
    assert str(raised_in_task(streamed.value)) == "the plain message"
    assert raised_in_task(ValueError("another's")) is None


def test_advice_of_ray_data_on_its_settings_is_not_in_what_the_user_reads() -> None:
    def fail(item: object) -> None:
        raise OSError("When reading key 'a': AWS Error SLOW_DOWN during GetObject operation")

    with streaming(2**27), pytest.raises(Exception, match="SLOW_DOWN") as streamed:
        ray.data.range(2).map_batches(fail).materialize()
    found = str(raised_in_task(streamed.value))
    assert "SLOW_DOWN during GetObject operation; run the command again when it answers" in found
    assert "UDF" not in found
    assert "DataContext" not in found


def test_a_lost_process_is_one_clear_error_and_a_broken_actor_is_not() -> None:
    @ray.remote(max_retries=0)
    def die() -> None:
        os._exit(1)

    with pytest.raises(ray.exceptions.RayError) as crashed:
        ray.get(die.remote())
    assert str(raised_in_task(crashed.value)).startswith("Ray lost a process or a node (WorkerCrashedError: ")

    @ray.remote(num_cpus=0)
    class Broken:
        def __init__(self) -> None:
            raise ValueError("a bug")

        def work(self) -> None: ...

    with pytest.raises(ray.exceptions.ActorDiedError) as unmade:
        ray.get(Broken.remote().work.remote())
    assert raised_in_task(unmade.value) is None


def test_resources_default_to_what_the_cluster_has() -> None:
    cpus = int(ray.cluster_resources()["CPU"])
    found = resolve(ResourcesConfig())
    assert (found.encoder_actors, found.train_workers, found.use_gpu) == (cpus, 1, False)
    # All encoder actors together leave a core for writing: without it the stage would wait forever.
    assert found.reserved_cpus(found.encoder_actors) * found.encoder_actors <= cpus - 1 + 1e-9
    one_core = replace(found, cpus=1.0, node_cpus=1, encoder_actors=1)
    beside = replace(one_core, gpus=1.0).decode_cpus + WRITER_CPUS
    assert one_core.reserved_cpus(one_core.encoder_actors) + beside <= 1
    assert replace(found, cpus=8.0, node_cpus=8, encoder_actors=1).reserved_cpus(1) == 7
    # Two machines of four cores: each has room for a writer beside its share of the actors.
    assert 4 * replace(found, cpus=8.0, node_cpus=4, encoder_actors=8).reserved_cpus(8) <= 3
    with pytest.raises(ConfigError, match=r"resources\.use_gpu is true, but this Ray cluster has no GPU"):
        resolve(ResourcesConfig(use_gpu=True))
    with pytest.raises(ConfigError, match=r"resources\.encoder_actors is 999"):
        resolve(ResourcesConfig(encoder_actors=999))
