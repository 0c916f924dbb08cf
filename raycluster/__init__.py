"""Cluster millions of images without labels on Ray.

>>> import raycluster
>>> result = raycluster.run({"images": "photos/", "output": "runs/photos", "clusters": 20})
>>> raycluster.load_model("runs/photos").predict(["cat.jpg"]).name
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raycluster.model import load_model
    from raycluster.pipeline import run

__all__ = ["load_model", "run"]


def __getattr__(name: str) -> Any:
    # Imported when first used: `raycluster --help` must not wait for torch and Ray.
    if name == "run":
        from raycluster.pipeline import run

        return run
    if name == "load_model":
        from raycluster.model import load_model

        return load_model
    raise AttributeError(f"module 'raycluster' has no attribute {name!r}")
