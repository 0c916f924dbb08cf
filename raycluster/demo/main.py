"""`raycluster demo`: draw pictures of a dozen kinds of things, cluster them, and show the clusters."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raycluster.demo.captions import caption_nouns
from raycluster.demo.drawing import draw_dataset
from raycluster.demo.kinds import SHOWN_KINDS
from raycluster.pipeline.run import run
from raycluster.storage.location import locate, read_table

PICTURES = 480
PROMPTS = ["a {}", "a picture of a {}", "a drawing of a {}", "an icon of a {}", "a sketch of a {}"]
"""Prompts of the demo's vocabulary. The tiny CLIP was trained with captions of this form."""


def demo(output: str, seed: int, method: str, finetune: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Draw the pictures (once), run every stage, and print the clusters; return the run's result as plain data.

    `finetune`: the section of the configuration, empty by default.

    The vocabulary is every noun of the captions that the tiny CLIP was trained with, not only the kinds shown.
    """
    folder = Path(output).expanduser().resolve() / f"seed-{seed}"
    pictures = folder / "pictures"
    if not pictures.exists():
        draft = folder / "pictures.draft"
        draw_dataset(draft, PICTURES, SHOWN_KINDS, seed)
        draft.rename(pictures)
    nouns = folder / "nouns.txt"
    nouns.write_text("\n".join(caption_nouns()) + "\n", encoding="utf-8")
    config = {
        "images": str(pictures),
        "labels": "folder",
        "output": str(folder / f"run-{method}"),
        "clusters": len(SHOWN_KINDS),
        "seed": seed,
        "encoder": {"model": "builtin"},
        "vocabulary": {"source": str(nouns), "prompts": PROMPTS},
        "method": {"name": method},
        "finetune": dict(finetune or {}),
    }
    result = run(config, command="demo")
    _show(result.as_json())
    return result.as_json()


def _show(result: dict[str, Any]) -> None:
    table = read_table(locate(result["tables"]["clusters"]).list(suffix=".parquet"))
    lines = [f"{'cluster':>7}  {'name':<16} {'size':>5} {'confidence':>10}"]
    for row in table.to_pylist():
        confidence = "" if row["mean_confidence"] is None else f"{row['mean_confidence']:.2f}"
        lines.append(f"{row['cluster']:>7}  {row['name']:<16} {row['size']:>5} {confidence:>10}")
    scores = "  ".join(f"{key.upper()} {result['metrics'][key]:.3f}" for key in ("acc", "nmi", "ari"))
    print("\n".join([*lines, "", scores, f"report: {result['report']}"]), file=sys.stderr)
