"""Choose the process group's backend by the devices that the workers really have, not by the GPUs that Ray counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import ray.train.torch
import torch
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.torch.config import TorchConfig, _TorchBackend

from raycluster.compute.resources import own_device


@dataclass
class DeviceConfig(TorchConfig):
    """Use NCCL if every worker computes on a GPU, else Gloo."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The backend class, which Ray Train reads when it starts the workers."""
        return _DeviceBackend


class _DeviceBackend(_TorchBackend):
    def on_start(self, worker_group: BaseWorkerGroup, backend_config: TorchConfig) -> None:
        """Ask the workers for their devices before they make the process group."""
        devices = set(worker_group.execute(own_device))
        backend = "nccl" if devices == {"cuda"} else "gloo"
        super().on_start(worker_group, replace(backend_config, backend=backend))


def worker_device() -> torch.device:
    """Return the device of this Train worker: its own GPU, or the CPU. Ray Train lets every worker see the GPUs of its whole node."""
    return ray.train.torch.get_device() if own_device() == "cuda" else torch.device("cpu")
