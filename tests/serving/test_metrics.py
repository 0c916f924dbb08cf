"""Test that the Prometheus texts of several nodes become one."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from raycluster.serving.metrics import gather

NODE = """# HELP ray_node_cpu CPUs
# TYPE ray_node_cpu gauge
ray_node_cpu 4.0
# HELP ray_raycluster_items_total Items.
# TYPE ray_raycluster_items_total counter
ray_raycluster_items_total{{result="ok",replica="{0}"}} 3.0
# HELP ray_serve_x X
# TYPE ray_serve_x gauge
ray_serve_x{{replica="{0}"}} 1.0
"""


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    class Agent(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(NODE.format(self.server.server_address[1]).encode())

        def log_message(self, *_: object) -> None:
            pass

    servers = [http.server.HTTPServer(("127.0.0.1", 0), Agent) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield [f"127.0.0.1:{server.server_address[1]}" for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


def test_each_metric_is_described_once_and_nodes_that_are_gone_are_left_out(nodes: list[str]) -> None:
    lines = gather([*nodes, "127.0.0.1:1"]).splitlines()
    assert lines.count("# TYPE ray_raycluster_items_total counter") == 1
    samples = [line for line in lines if line.startswith("ray_raycluster_items_total")]
    assert len(samples) == 2
    # The samples of a metric stand together, as the format demands.
    first = lines.index(samples[0])
    assert lines[first : first + 2] == samples
    assert not any("node_cpu" in line for line in lines)
    assert any(line.startswith("ray_serve_x") for line in lines)
