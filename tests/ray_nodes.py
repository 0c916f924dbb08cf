"""A Ray cluster of several nodes on this machine. Its nodes can be killed as machines die, without a message."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ray._private.utils import write_ray_address
from ray.cluster_utils import Cluster
from ray_workers import descendants

ROOT = Path(__file__).resolve().parents[1]
RAY = Path(sys.executable).parent / "ray"
IMPATIENT = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""For `environment`: with these values Ray notices a silent node after few seconds; on a real cluster it takes half a minute."""


class Nodes:
    """A head that computes nothing, as on a real cluster, and worker nodes."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.dashboard, agent, client = free_ports(3)
        self.folders: list[str] = []
        with self._environment():
            self.cluster = Cluster(
                initialize_head=True,
                head_node_args={
                    "num_cpus": 0,
                    "include_dashboard": True,
                    "dashboard_port": self.dashboard,
                    "dashboard_agent_listen_port": agent,
                    "ray_client_server_port": client,
                    "temp_dir": self.own_folder(),
                },
            )
        write_ray_address(self.cluster.gcs_address, self.cluster.head_node.temp_dir)

    def own_folder(self) -> str:
        """A temporary folder for one node. Nodes that shared one would delete each other's working directories."""
        self.folders.append(tempfile.mkdtemp(prefix="rn"))  # short: it holds sockets
        return self.folders[-1]

    @contextlib.contextmanager
    def _environment(self) -> Iterator[None]:
        """A context that sets the environment, because Ray's processes inherit it when they start."""
        before = dict(os.environ)
        os.environ.update(self.environment)
        os.environ.pop("RAY_ADDRESS", None)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def add(self, **resources: float) -> Any:
        """Start another worker node."""
        folder = self.own_folder()
        # Without this file a job whose driver comes to this node would join whichever Ray it finds on this machine.
        write_ray_address(self.cluster.gcs_address, folder)
        with self._environment():
            (agent,) = free_ports(1)
            return self.cluster.add_node(temp_dir=folder, dashboard_agent_listen_port=agent, **resources)

    def kill(self, node: Any) -> None:
        """Kill every process of the node at once: raylet, workers, and the driver of a job that runs there."""
        raylet = node.all_processes["raylet"][0].process.pid
        for pid in [*descendants(raylet), raylet]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)

    def submit(self, *entrypoint: str, options: tuple[str, ...] = (), timeout: float = 300) -> subprocess.Popen[str]:
        """Start `ray job submit` with the working tree; its output is piped."""
        address = ("--address", f"http://127.0.0.1:{self.dashboard}")
        command = [str(RAY), "job", "submit", *address, "--working-dir", str(ROOT), *options, "--", *entrypoint]
        self._wait_for_agents(address, timeout)
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **self.environment}
        )

    def _wait_for_agents(self, address: tuple[str, ...], timeout: float) -> None:
        """Wait until the head can take jobs, which is later than its first answer."""
        deadline = time.monotonic() + timeout
        while True:
            probe = [str(RAY), "job", "submit", *address, "--", "true"]
            done = subprocess.run(
                probe,
                capture_output=True,
                text=True,
                timeout=timeout,
                env={**os.environ, **self.environment},
                check=False,
            )
            if done.returncode == 0:
                return
            assert time.monotonic() < deadline, done.stdout + done.stderr
            time.sleep(1)

    @contextlib.contextmanager
    def add_apart(self, mount: str) -> Iterator[None]:
        """A context with another worker node, which sees the disk as the shell command `mount` has changed it."""
        start = f"{RAY} start --address={self.address} --num-cpus=1 --block --temp-dir={self.own_folder()}"
        alone = ["unshare", "--map-root-user", "--mount", "sh", "-c", f"{mount} && exec {start}"]
        known = self.living()
        node = subprocess.Popen(
            alone, env={**os.environ, **self.environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: self.living() > known, node, 90)
            yield
        finally:
            node.terminate()
            node.wait(60)

    def living(self) -> int:
        """How many nodes the cluster has."""
        return sum(each["Alive"] for each in self.cluster.global_state.node_table())

    @property
    def address(self) -> str:
        """The address of the cluster, for RAY_ADDRESS."""
        return str(self.cluster.gcs_address)

    def stop(self) -> None:
        """End all processes of this cluster."""
        self.cluster.shutdown()
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def cluster_of(*cpus: float, environment: dict[str, str] | None = None) -> Iterator[tuple[Nodes, list[Any]]]:
    """A cluster of a head and one worker node for each number of CPUs."""
    nodes = Nodes({"RAY_AUTH_MODE": "disabled", **(environment or {})})
    try:
        yield nodes, [nodes.add(num_cpus=count) for count in cpus]
    finally:
        nodes.stop()


def arguments(*words: str) -> list[str]:
    """The words of a raycluster command."""
    return [sys.executable, "-m", "raycluster.cli", *words]


def environment(cluster: Nodes) -> dict[str, str]:
    """The environment of a command whose driver joins the cluster."""
    return {**os.environ, "RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}


def command(cluster: Nodes, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a raycluster command on the cluster, to its end."""
    return subprocess.run(
        arguments(*words), capture_output=True, text=True, timeout=200, env=environment(cluster), check=False
    )


def finished(job: subprocess.Popen[str], timeout: float) -> tuple[int, str]:
    """Exit code and output of a submitted job. As all nodes are on one machine, the output lacks the log of a driver on a worker node."""
    try:
        output, _ = job.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        job.kill()
        output, _ = job.communicate()
        raise AssertionError(f"the job did not end in {timeout} s:\n{output}") from None
    return job.returncode, output


def wait_until(condition: Callable[[], Any], job: subprocess.Popen[str], timeout: float, pause: float = 0.1) -> Any:
    """Wait until `condition` is true and return its value; fail when the process ends before."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert job.poll() is None, f"it ended too early:\n{job.communicate()[0]}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause)
    return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
