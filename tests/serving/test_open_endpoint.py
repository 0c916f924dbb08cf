"""Test that an endpoint which answers everybody is never deployed without a warning."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from model_kit import DIM, small_model
from ray_nodes import cluster_of
from serving_kit import free_port, wait_until

from raycluster.serving.access import only_loopback
from raycluster.serving.app import build
from raycluster.serving.settings import ServeSettings

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-some-length"


@pytest.mark.parametrize(
    ("given", "variable", "warned"),
    [
        ({}, None, True),
        ({"allowed_hosts": ["clusters.example"]}, None, True),
        ({"allowed_hosts": ["localhost", "clusters.example"]}, None, True),
        ({"allowed_hosts": ["127.0.0.1", "localhost", "[::1]"]}, None, False),
        ({}, TOKEN, False),
        ({"tokens_file": "tokens"}, None, False),
    ],
)
def test_the_builder_warns_of_an_open_endpoint(
    given: dict[str, Any],
    variable: str | None,
    warned: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tokens").write_text(TOKEN)
    monkeypatch.delenv("RAYCLUSTER_TOKENS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAYCLUSTER_TOKENS", variable)
    run = str(small_model(tmp_path / "model"))
    with caplog.at_level(logging.WARNING):
        build(ServeSettings.model_validate({"run": run, "model": {"num_gpus": 0}, **given}))
    said = [record.message for record in caplog.records if "no token is needed" in record.message]
    assert len(said) == warned
    assert all("RAYCLUSTER_TOKENS" in each for each in said)


def test_which_names_are_this_machine_alone() -> None:
    assert only_loopback(["127.0.0.1", "::1", "[::1]", "localhost", "127.8.8.8"])
    assert not only_loopback([])
    for name in ("0.0.0.0", "::", "10.0.0.1", "localhost.example", "", "127.0.0.1.example"):
        assert not only_loopback(["127.0.0.1", name])


@pytest.mark.torture
@pytest.mark.timeout(400)
def test_serve_deploy_of_our_file_asks_for_the_token(tmp_path: Path) -> None:
    """Only the run, the token and the port in the file are changed, and it is deployed on a cluster of its own."""
    config = yaml.safe_load((ROOT / "cluster_configs" / "serve.yaml").read_text())
    (application,) = config["applications"]
    application["args"]["run"] = str(small_model(tmp_path / "model"))
    port = free_port()
    # Two nodes of one machine cannot both listen on the port.
    config |= {"http_options": {"host": "127.0.0.1", "port": port}, "proxy_location": "HeadOnly"}
    url, file = f"http://127.0.0.1:{port}", tmp_path / "serve.yaml"

    def ask(**headers: str) -> int:
        body = {"items": [{"embedding": [1.0] * DIM}]}
        try:
            return requests.post(f"{url}/v1/assign/embeddings", json=body, headers=headers, timeout=60).status_code
        except requests.ConnectionError:
            return 0

    with cluster_of(3) as (cluster, _):
        address = f"http://127.0.0.1:{cluster.dashboard}"

        def deploy() -> str:
            """Deploy the application, and return its status once that is settled."""
            file.write_text(yaml.safe_dump(config))
            command = [sys.executable, "-m", "ray.serve.scripts", "deploy", str(file), "--address", address]
            environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
            subprocess.run(command, check=True, timeout=120, env=environment, capture_output=True)

            def settled() -> str | None:
                found = requests.get(f"{address}/api/serve/applications/", timeout=60).json()["applications"]
                status = found.get("raycluster", {}).get("status")
                return str(status) if status in ("RUNNING", "DEPLOY_FAILED") else None

            return str(wait_until(settled, 180))

        # If the placeholder is not replaced, there is no endpoint.
        assert deploy() == "DEPLOY_FAILED"
        application["runtime_env"]["env_vars"]["RAYCLUSTER_TOKENS"] = f"another-token-of-ours {TOKEN}"
        assert deploy() == "RUNNING"
        wait_until(lambda: ask() != 0, 60)
        assert ask() == ask(authorization="Bearer TOKEN") == 401
        assert ask(authorization=f"Bearer {TOKEN}") == 200
