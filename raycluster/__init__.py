"""Cluster millions of images without labels on Ray.

>>> import raycluster
>>> result = raycluster.run({"images": "photos/", "output": "runs/photos", "clusters": 20})
>>> raycluster.load_model("runs/photos").predict(["cat.jpg"]).name
>>> raycluster.assign(model="runs/photos", images="new/", output="runs/new").metrics["verdict"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raycluster.model.files import load_model
    from raycluster.pipeline.run import assign, run

__all__ = ["assign", "load_model", "run"]


def __getattr__(name: str) -> Any:
    # Imported when first used: `raycluster --help` must not wait for torch and Ray.
    if name in ("assign", "run"):
        from raycluster.pipeline import run as module

        return getattr(module, name)
    if name == "load_model":
        from raycluster.model.files import load_model

        return load_model
    raise AttributeError(f"module 'raycluster' has no attribute {name!r}")
