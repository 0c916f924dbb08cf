"""Test that the script for machines with a GPU runs, here on the CPU with little data, and needs only the packages that it names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]

# The packages that the docstring of the script expects on the machine, and those that it says to bring along.
THERE = (
    *("torch", "torchvision", "timm", "pyarrow", "numpy", "scipy", "scikit-learn", "safetensors", "pillow"),
    *("huggingface_hub", "filelock", "pyyaml", "threadpoolctl", "tqdm"),
)
BROUGHT = ("open_clip_torch", "ftfy", "wcwidth", "regex", "pydantic", "pydantic_core", "annotated-types")
ABSENT = (
    "ray",
    "s3fs",
    "aiobotocore",
    "botocore",
    "boto3",
    "aiohttp",
    "fastapi",
    "starlette",
    "uvicorn",
    "requests",
    "wn",
)

RUN = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
folder = sys.argv.pop(1)
sys.path.insert(0, folder)
runpy.run_path(folder + "/check.py", run_name="__main__")
"""
"""A program that runs the script while the imports of ABSENT fail."""


@pytest.mark.timeout(300)
def test_the_script_finds_nothing_wrong_and_needs_only_what_it_says() -> None:
    # One thread is used, because on a busy machine two threads wait for each other more than they compute.
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(FOLDER), "--device", "cpu", "--small"]
    run = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    names = [row["name"] for row in result["rows"]]
    assert len(names) == len(set(names))
    for kind in ("cosine of bf16", "encode_pixels", "kmeans", "neighbors", "consensus", "heads", "LoRA"):
        assert any(kind in name for name in names), kind
    assert sum("ok" in row for row in result["rows"]) >= 10


def test_the_head_names_each_dependency_that_the_script_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    # Jinja2, MarkupSafe and python-multipart are for pages, and pandas is for listings, which the script does not make.
    needless = {"jinja2", "markupsafe", "python-multipart", "pandas"}
    assert declared - needless - set(ABSENT) <= {canonicalize_name(name) for name in (*THERE, *BROUGHT)}
    head = (FOLDER / "check.py").read_text()
    assert [name for name in (*THERE, *BROUGHT) if name not in head] == []


def test_a_wrong_result_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    sys.path.insert(0, str(FOLDER))
    try:
        from table import Table
    finally:
        sys.path.remove(str(FOLDER))
    table = Table()
    table.add("seconds", 3.0, "s")
    table.add("right", 0.9995, at_least=0.999)
    assert table.all_ok
    table.add("no number", float("nan"), at_least=0.999)
    assert not table.all_ok
    assert '"ok": false' in capsys.readouterr().err
