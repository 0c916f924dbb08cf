"""The run folder that an earlier version wrote: where it lies while it is tested, how it was configured, and how it was made.

    git worktree add /tmp/raycluster-old af32e61
    PYTHONPATH=/tmp/raycluster-old:tests python tests/old_run.py

A manifest holds absolute addresses, so the folder always lies at the same place.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

PLACE = Path("/tmp/raycluster-old-run")
ARCHIVE = Path(__file__).parent / "fixtures" / "run-af32e61.tar.xz"
KINDS = ("house", "fish", "tree", "star")
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
"""An untrained open_clip model that is small enough to be kept."""


def configuration() -> dict[str, Any]:
    """The configuration of a run with every stage."""
    return {
        "images": str(PLACE / "photos"),
        "output": str(PLACE / "out"),
        "clusters": 4,
        "labels": "folder",
        "max_failed_fraction": 0.2,
        "encoder": {"model": f"local-dir:{PLACE / 'clip'}", "precision": "fp32"},
        "shards": {"enabled": True},
        "vocabulary": {
            "source": str(PLACE / "nouns.txt"),
            "prompts": ["a picture of a {}"],
            "cache": str(PLACE / "cache"),
        },
        "method": {"name": "dxmc", "epochs": 3, "batch_size": 16},
        "finetune": {"enabled": True, "rank": 2, "batch_size": 16, "epochs": 1, "max_lost_clusters": 1.0,
                     "max_lost_consistency": 1.0, "max_added_imbalance": 1.0},
        "report": {"map_sample": 10, "thumbnail": 32},
        "resources": {"encoder_actors": 1},
    }  # fmt: skip


def new_pictures() -> dict[str, Any]:
    """The arguments that assign new pictures with the model of that run."""
    return {
        "model": str(PLACE / "out"),
        "images": str(PLACE / "new"),
        "output": str(PLACE / "assigned"),
        "resources": {"encoder_actors": 1},
    }


def write_tiny_clip(folder: Path) -> None:
    """Write the model as an open_clip folder. Its token embeddings repeat, so that the archive stays small."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    tokens = weights["token_embedding.weight"]
    weights["token_embedding.weight"] = tokens[torch.arange(len(tokens)) % 61].clone()
    folder.mkdir(parents=True)
    preprocess = {"mean": [0.5] * 3, "std": [0.3] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": preprocess}))
    save_file(weights, folder / "open_clip_model.safetensors")


def make() -> None:
    """Run with the version that is imported, and pack what it wrote."""
    import raycluster
    from raycluster.demo.drawing import draw_dataset

    shutil.rmtree(PLACE, ignore_errors=True)
    draw_dataset(PLACE / "photos", 24, KINDS, seed=11)
    (PLACE / "photos" / "text.jpg").write_text("not a picture")
    draw_dataset(PLACE / "new", 8, KINDS, seed=12)
    (PLACE / "nouns.txt").write_text("\n".join((*KINDS, "car", "cup", "bird", "flower")))
    write_tiny_clip(PLACE / "clip")
    print(raycluster.run(configuration()).stages)
    print(raycluster.assign(**new_pictures()).stages)
    shutil.rmtree(PLACE / "out" / "training", ignore_errors=True)
    ARCHIVE.parent.mkdir(exist_ok=True)
    # Times of files are kept to the nanosecond, because the manifest holds them.
    subprocess.run(
        ["tar", "--create", "--format=posix", "--xz", "--file", ARCHIVE, "--directory", PLACE, "."], check=True
    )


if __name__ == "__main__":
    make()
