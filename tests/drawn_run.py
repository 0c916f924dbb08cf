"""One finished run on drawn pictures, which the tests of runs, of new pictures and of the endpoint share, and other runs made from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import raycluster
from raycluster.demo.drawing import draw_dataset
from raycluster.pipeline.run import RunResult

KINDS = ("house", "fish", "tree", "star")
NOUNS = (*KINDS, "car", "cup", "bird", "flower", "animal", "building", "plant", "vehicle")
READABLE = 80
UGLY = {"empty.jpg": "empty", "text.jpg": "undecodable", "cut.png": "undecodable", "gone.jpg": "missing"}
"""Files that cannot be read, and the status of each."""


def draw(folder: Path) -> Path:
    """Write `READABLE` pictures in folders, the files of `UGLY`, and a text file, which is not listed."""
    draw_dataset(folder, READABLE, KINDS, seed=11)
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("not a picture")
    good = next((folder / "fish").iterdir()).read_bytes()
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    (folder / "notes.txt").write_text("a list")
    return folder


def configuration(photos: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """The configuration of a run with the built-in encoder. Its nouns and its cache lie beside the output folder."""
    nouns = output.parent / "nouns.txt"
    nouns.write_text("\n".join(NOUNS))
    return {
        "images": str(photos),
        "output": str(output),
        "clusters": 4,
        "labels": "folder",
        "max_failed_fraction": 0.2,
        "encoder": {"model": "builtin", "precision": "fp32"},
        "vocabulary": {"source": str(nouns), "prompts": ["a picture of a {}"], "cache": str(output.parent / "cache")},
        "method": {"name": "kmeans"},
        "resources": {"encoder_actors": 1},
        **changes,
    }


def copied(config: dict[str, Any], output: Path, until: str, **changes: Any) -> RunResult:
    """Repeat a finished run with other settings, in a copy of its folder. Stages that do not depend on these settings are skipped."""
    shutil.copytree(config["output"], output)
    return raycluster.run({**config, "output": str(output), **changes}, until=until)
