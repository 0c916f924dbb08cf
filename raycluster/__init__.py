"""Cluster millions of images without labels on Ray.

>>> import raycluster
>>> result = raycluster.run({"images": "photos/", "output": "runs/photos", "clusters": 20})
>>> raycluster.load_model("runs/photos").predict(["cat.jpg"]).name
>>> raycluster.assign(model="runs/photos", images="new/", output="runs/new").metrics["verdict"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raycluster.model_files import load_model
    from raycluster.pipeline import assign, run

__all__ = ["assign", "load_model", "run"]


def __getattr__(name: str) -> Any:
    # Imported when first used: `raycluster --help` must not wait for torch and Ray.
    if name in ("assign", "run"):
        from raycluster import pipeline

        return getattr(pipeline, name)
    if name == "load_model":
        from raycluster.model_files import load_model

        return load_model
    raise AttributeError(f"module 'raycluster' has no attribute {name!r}")
