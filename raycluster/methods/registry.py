"""Find methods by name.

Every module of :mod:`raycluster.methods` that defines `METHOD` is a method, so a new paper needs only a new file.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from torch import Tensor

import raycluster.methods
from raycluster.config import MethodConfig
from raycluster.errors import ConfigError
from raycluster.methods.base import Method
from raycluster.section import validate
from raycluster.semantics.pairing import SemanticSpace


@cache
def _methods() -> dict[str, type[Method]]:
    names = [info.name for info in pkgutil.iter_modules(raycluster.methods.__path__) if not info.ispkg]
    modules = [import_module(f"raycluster.methods.{name}") for name in names]
    return {module.METHOD.name: module.METHOD for module in modules if hasattr(module, "METHOD")}


def method_names() -> list[str]:
    """Return the names of all methods, sorted."""
    return sorted(_methods())


def method_class(name: str) -> type[Method]:
    """Return the method called `name`. Raises :class:`ConfigError` with the known names if there is none."""
    if name not in _methods():
        raise ConfigError(f"method.name: unknown method {name!r}; choose one of {', '.join(method_names())}")
    return _methods()[name]


def space(config: MethodConfig) -> SemanticSpace:
    """Return the semantic space of a configured method."""
    return method_class(config.name).space(config)


def configure(config: MethodConfig) -> MethodConfig:
    """Return the section, checked by the method's own class. Raises :class:`ConfigError` for a constant that it does not have."""
    given = {**config.model_dump(exclude_unset=True, exclude_none=True), "name": config.name}
    return validate(given, method_class(config.name).Config, "method")


def build(config: MethodConfig, dim: int, n_clusters: int, n_rows: int, seed: int) -> Method:
    """Return a fresh method. The same arguments give the same numbers in every process."""
    config = configure(config)
    return method_class(config.name).variant(config)(config, dim, n_clusters, n_rows, seed)


def restore(
    name: str, constants: Mapping[str, Any], dim: int, n_clusters: int, n_rows: int, state: Mapping[str, Tensor]
) -> Method:
    """Return a trained method, made of what a model folder holds."""
    method = build(validate({**constants, "name": name}, MethodConfig, "constants"), dim, n_clusters, n_rows, seed=0)
    method.load_state_dict(state)
    return method
