"""Test what can be checked without a cloud in `cluster_configs/`, `jobs/` and the README: schemas, versions, paths, commands."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from raycluster.cli import _parse, load_config
from raycluster.errors import ConfigError
from raycluster.methods import registry
from raycluster.serving.access import TOKENS_VARIABLE, read_tokens

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "cluster_configs"
KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}
RAY = version("ray")


def manifests() -> list[Path]:
    return sorted((CONFIGS / "kuberay").glob("*.yaml"))


def read(file: Path) -> Any:
    # A definition of KubeRay has a megabyte, and pure Python takes seconds to read it.
    return yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def strict(schema: Any) -> Any:
    """An OpenAPI schema of Kubernetes as JSON schema that refuses unknown fields, as the API server's strict validation does."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items() if not key.startswith("x-")}
    if "properties" in schema and "additionalProperties" not in schema and isinstance(schema["properties"], dict):
        result["additionalProperties"] = schema.get("x-kubernetes-preserve-unknown-fields", False)
    if schema.get("x-kubernetes-int-or-string"):
        result = {key: value for key, value in result.items() if key not in ("type", "format")}
    return result


@pytest.mark.parametrize("file", manifests(), ids=lambda file: file.stem)
def test_kuberay_would_take_the_manifest(file: Path, shared: Path) -> None:
    manifest = read(file)
    assert manifest["apiVersion"] == "ray.io/v1"
    definition = read(shared / "kuberay" / f"ray.io_{KINDS[manifest['kind']]}.yaml")
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == "v1")
    schema = strict(schema)
    schema["properties"].pop("metadata")
    schema["properties"]["metadata"] = {"type": "object"}
    validator = jsonschema.Draft202012Validator(schema)
    assert [error.message for error in validator.iter_errors(manifest)] == []
    # The validator also finds an error: an unknown field deep inside.
    cluster_of(manifest)["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    (error,) = validator.iter_errors(manifest)
    assert "imagePullPolice" in error.message


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def gibibytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi"))


@pytest.mark.parametrize("file", manifests(), ids=lambda file: file.stem)
def test_pods_have_shared_memory_and_the_head_no_work(file: Path) -> None:
    manifest = read(file)
    cluster = cluster_of(manifest)
    assert cluster["rayVersion"] == RAY
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    if manifest["kind"] == "RayJob":
        assert manifest["spec"]["submissionMode"] == "K8sJobMode"
        assert manifest["spec"]["entrypointNumCpus"] >= 1
        _parse(shlex.split(manifest["spec"]["entrypoint"])[1:])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        (volume,) = pod["volumes"]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}]
        assert volume["emptyDir"]["medium"] == "Memory"
        # Ray gives its object store 30 % of the memory, and does without shared memory if there is less.
        limits = container["resources"]["limits"]
        assert gibibytes(volume["emptyDir"]["sizeLimit"]) >= 0.3 * gibibytes(limits["memory"])
        assert container["resources"]["requests"] == limits
        assert group["rayStartParams"].get("object-store-memory") is None


def test_rays_launcher_would_take_the_aws_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    given = read(CONFIGS / "aws" / "cluster.yaml")
    prepared = prepare_config(given)
    validate_config(prepared)
    kinds = prepared["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert any("GPU" in kind["resources"] for kind in kinds.values())
    for name, kind in kinds.items():
        assert "IamInstanceProfile" in kind["node_config"]
        assert (kind["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}) == (name != "head")
    assert any("--num-cpus=0" in command for command in prepared["head_start_ray_commands"])
    with pytest.raises(jsonschema.ValidationError, match="max_wokers"):
        validate_config(prepare_config({**given, "max_wokers": 3}))


def serve_files() -> dict[str, dict[str, Any]]:
    service = read(CONFIGS / "kuberay" / "rayservice.yaml")
    return {
        "serve.yaml": read(CONFIGS / "serve.yaml"),
        "rayservice.yaml": yaml.safe_load(service["spec"]["serveConfigV2"]),
    }


def test_serve_would_take_its_file() -> None:
    from ray.serve.schema import ServeDeploySchema

    files = serve_files()
    for content in files.values():
        ServeDeploySchema.model_validate(content)
    (application,) = files["serve.yaml"]["applications"]
    del application["runtime_env"]  # on Kubernetes the tokens come from a secret
    assert files["serve.yaml"] == files["rayservice.yaml"]


def test_no_endpoint_is_open_unless_somebody_takes_the_tokens_away(monkeypatch: pytest.MonkeyPatch) -> None:
    (application,) = serve_files()["serve.yaml"]["applications"]
    placeholder = application["runtime_env"]["env_vars"][TOKENS_VARIABLE]
    monkeypatch.setenv(TOKENS_VARIABLE, placeholder)
    with pytest.raises(ConfigError, match="shorter than"):
        read_tokens(None)
    head = (CONFIGS / "serve.yaml").read_text().partition("proxy_location")[0]
    assert placeholder in head
    cluster = cluster_of(read(CONFIGS / "kuberay" / "rayservice.yaml"))
    secret = (CONFIGS / "kuberay" / "rayservice.yaml").read_text()
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        (variable,) = container["env"]
        assert variable["name"] == TOKENS_VARIABLE
        # The reference is not optional, so the pod does not start without the secret.
        reference = variable["valueFrom"]["secretKeyRef"]
        assert f"# kubectl create secret generic {reference['name']} --from-literal={reference['key']}=" in secret
        assert set(reference) == {"name", "key"}


def test_the_applications_import_path_resolves_and_takes_the_arguments() -> None:
    (application,) = serve_files()["serve.yaml"]["applications"]
    module, _, name = application["import_path"].partition(":")
    builder = getattr(importlib.import_module(module), name)
    (argument,) = builder.__annotations__.keys() - {"return"}
    builder.__annotations__[argument].model_validate(application["args"])


@pytest.mark.parametrize("file", sorted((CONFIGS / "runs").glob("*.yaml")), ids=lambda file: file.stem)
def test_run_configurations_are_valid(file: Path) -> None:
    registry.configure(load_config(str(file), {}).method)


def test_versions_agree_everywhere() -> None:
    texts = {file: file.read_text() for file in sorted(CONFIGS.rglob("*")) if file.is_file()}
    named = {
        (file.name, found) for file, text in texts.items() for found in re.findall(r"raycluster:(\d[\d.]*\d)", text)
    }
    assert {found for _, found in named} == {RAY}
    assert {name for name, _ in named} == {
        "Dockerfile",
        "cluster.yaml",
        "raycluster.yaml",
        "rayjob.yaml",
        "rayservice.yaml",
    }
    dockerfile = texts[CONFIGS / "Dockerfile"]
    assert f"ARG RAY_VERSION={RAY}\n" in dockerfile
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (python,) = re.findall(r"ARG PYTHON=py3(\d+)", dockerfile)
    assert project["requires-python"] == f">=3.{python}"
    (pinned,) = (line for line in project["dependencies"] if line.startswith("ray["))
    assert pinned.startswith(f"ray[data,train,serve]>={RAY.rpartition('.')[0]}")
    torch, vision = re.findall(r'ARG TORCH="(\S+) (\S+)"', dockerfile)[0]
    assert {torch, vision} <= set(project["dependencies"])


def test_no_keys_in_files() -> None:
    for file in CONFIGS.rglob("*"):
        if file.is_file():
            assert not re.search(r"AKIA[0-9A-Z]{16}|(?i:secret_access_key|password)\s*[:=]\s*\S", file.read_text()), (
                file
            )


def test_what_the_dockerfile_copies_is_there_and_what_it_calls_exists() -> None:
    text = (CONFIGS / "Dockerfile").read_text()
    sources = [word for line in re.findall(r"^COPY \S+ (.+)$", text, re.M) for word in line.split()[:-1]]
    allowed = (CONFIGS / "Dockerfile.dockerignore").read_text().splitlines()
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in allowed
    for module, names in re.findall(r"from (raycluster\S*) import (\w+)", text):
        assert hasattr(importlib.import_module(module), names)


def test_files_that_the_readme_names_are_there() -> None:
    named = re.findall(r"(?:cluster_configs|tests|jobs)/[\w./-]*\w", (ROOT / "README.md").read_text())
    assert len(named) > 15
    for path in {*named}:
        assert (ROOT / path).exists(), path
    for file in (CONFIGS / "aws").glob("*.json"):
        assert read(file)["Version"] == "2012-10-17"


def test_data_and_environments_stay_at_home() -> None:
    ignored = (ROOT / ".rayignore").read_text().split()
    assert {".venv/", ".git/", "raycluster-demo/", "/runs/"} <= set(ignored)


def test_every_command_has_its_job_and_every_job_its_command() -> None:
    from raycluster.cli import COMMANDS

    for job in sorted((ROOT / "jobs").glob("*.py")):
        text = job.read_text()
        assert len(text.splitlines()) <= 30
        assert job.stem in COMMANDS
        assert f'main(["{job.stem}", *sys.argv[1:]])' in text
    local = {"status", "demo", "serve"}
    assert {job.stem for job in (ROOT / "jobs").glob("*.py")} >= COMMANDS.keys() - local


def test_entry_points_resolve() -> None:
    for target in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


# The following tests check the commands in the README and in the comments of the files.


def written_commands() -> Iterator[tuple[str, list[str]]]:
    """Each command of a code block or of a file's head, as words."""
    readme = re.findall(r"(?m)^    (?!#)(\S.*)$", (ROOT / "README.md").read_text().replace("\\\n", " "))
    heads = [
        line
        for file in sorted(CONFIGS.rglob("*"))
        if file.is_file()
        for line in re.findall(r"(?m)^# +(\S.*)$", file.read_text())
    ]
    for line in [*readme, *heads]:
        if re.match(r"(raycluster|ray|make|serve|python) [a-z-]|python \S+\.py", line):
            # In the heads an explanation follows after a wide gap, or after a semicolon.
            command = re.split(r"\s{2,}(?=\S)|;", line.strip(), maxsplit=1)[0] if line in heads else line
            yield line, shlex.split(command.replace("<", "").replace(">", ""), comments=True)


def click_command(words: list[str]) -> None:
    """Parse a command of Ray's or Serve's own without running it."""
    from ray.dashboard.modules.job.cli import submit
    from ray.scripts.scripts import cli as ray_cli
    from ray.serve.scripts import cli as serve_cli

    if words[:3] == ["ray", "job", "submit"]:
        context = submit.make_context("submit", words[3:])
        entrypoint = context.params["entrypoint"]
        if entrypoint[0] == "python":
            assert (ROOT / entrypoint[1]).exists()
            _parse([Path(entrypoint[1]).stem, *entrypoint[2:]])
        else:
            _parse(list(entrypoint[1:]))
        if context.params["runtime_env"]:
            assert (ROOT / context.params["runtime_env"]).exists()
        return
    group: Any = {"ray": ray_cli, "serve": serve_cli}[words[0]]
    rest = words[1:]
    while hasattr(group, "commands"):
        group = group.commands[rest.pop(0)]
    group.make_context(group.name, [word for word in rest if word != "…"])


@pytest.mark.parametrize(
    ("line", "words"), list(written_commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_written_command_parses(line: str, words: list[str]) -> None:
    match words[0]:
        case "raycluster":
            _parse(words[1:])
        case "make":
            targets = re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text())
            assert set(words[1:]) <= set(targets)
        case "python":
            assert words[1] == "-m" or (ROOT / words[1]).exists()
        case _:
            click_command(words)
    for word in words:
        if word.startswith(("cluster_configs/", "jobs/", "tests/")):
            assert (ROOT / word).exists(), word
