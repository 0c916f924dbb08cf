#!/usr/bin/env python3
"""Run the tests that need no Ray with the lowest versions that pyproject.toml declares.

    .venv/bin/python .ci/lowest.py [pytest arguments]

The Python that runs this script needs raycluster and its `dev` extra. Its torch, torchvision and Ray are large and are used as they are. The
script makes a second, temporary environment that sees all packages of the first one, and installs there all other dependencies at their
lower bounds, with what they need. A lower bound is installed exactly as it is written, so it must name a version that exists.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
EXCLUDED = ("torch", "torchvision")
"""These are never resolved, because what they need differs between their builds for CPUs and for GPUs."""
TESTS = "not ray and not slow and not torture"
"""Marks of the tests that are run."""


def lowest_requirements() -> list[str]:
    """The dependencies of pyproject.toml at their lower bounds, but Ray at its installed version, so that its own requirements count."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = []
    for line in project["dependencies"] + project["optional-dependencies"]["wn"]:
        requirement = Requirement(line)
        if requirement.name in EXCLUDED:
            continue
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        pins.append(f"{requirement.name}{extras}=={_pinned(requirement)}")
    return pins


def _pinned(requirement: Requirement) -> str:
    if requirement.name == "ray":
        return version("ray")
    lower = [bound.version for bound in requirement.specifier if bound.operator == ">="]
    if len(lower) != 1:
        raise SystemExit(f"pyproject.toml: {requirement} has no lower bound; write `{requirement.name}>=…`")
    return lower[0]


def is_installed(pin: str) -> bool:
    """Whether the first environment has exactly this version."""
    requirement = Requirement(pin)
    try:
        return requirement.specifier.contains(version(canonicalize_name(requirement.name)), prereleases=True)
    except PackageNotFoundError:
        return False


def run(*command: str | Path, **options: object) -> str:
    """Run a command that must succeed; returns its standard output."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout  # type: ignore[call-overload, no-any-return]


def install_lowest(environment: Path) -> Path:
    """Make the second environment; returns its Python."""
    run(sys.executable, "-m", "venv", environment)
    python, uv = environment / "bin" / "python", environment / "bin" / "uv"
    run(python, "-m", "pip", "install", "--quiet", "uv")
    (environment / "lowest.in").write_text("\n".join(lowest_requirements()))
    (environment / "excluded").write_text("\n".join(EXCLUDED))
    # The cache lies inside the environment and is deleted with it.
    variables = {**os.environ, "UV_CACHE_DIR": str(environment / "cache")}
    options = ["--quiet", "--python", python]
    resolve = [*options, "--no-header", "--no-annotate", "--excludes", environment / "excluded"]
    resolved = run(uv, "pip", "compile", *resolve, environment / "lowest.in", env=variables).splitlines()
    missing = [pin for pin in resolved if not is_installed(pin)]
    print("lowest:", *missing, flush=True)
    (environment / "missing").write_text("\n".join(missing))
    install = [*options, "--no-deps", "--requirements", environment / "missing", "--editable", ROOT]
    run(uv, "pip", "install", *install, env=variables)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # Paths in .pth files come after the environment's own packages, which therefore win.
    (site / "first_environment.pth").write_text(sysconfig.get_path("purelib"))
    return python


def main() -> int:
    """Install and test; returns pytest's exit code."""
    with tempfile.TemporaryDirectory(prefix="raycluster-lowest-") as folder:
        python = install_lowest(Path(folder))
        # moto's server has its own requirements on botocore, so the first environment runs it.
        variables = {**os.environ, "RAYCLUSTER_S3_PYTHON": sys.executable}
        # Plugins of pytest in the first environment may need newer packages than the second one has.
        variables["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        plugins = ["-p", "pytest_timeout", "-p", "xdist.plugin"]
        processes = ["--numprocesses", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
        tests = [python, "-m", "pytest", *plugins, *processes, "-m", TESTS, *sys.argv[1:]]
        return subprocess.run(tests, cwd=ROOT, env=variables, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
