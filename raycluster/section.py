"""The base of every checked structure: frozen, no unknown keys, one clear error for all bad fields, and a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from raycluster.errors import ConfigError

SectionOf = TypeVar("SectionOf", bound="Section")

SECRET = "may_hold_a_secret"
"""Type of the errors that must not repeat the given value in their message."""


class Section(BaseModel):
    """A frozen part of the configuration, or of a stored file; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def validate(data: Mapping[str, Any], model: type[SectionOf], where: str = "config") -> SectionOf:
    """Build `model` from plain data, or raise one :class:`ConfigError` that names every bad field."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_explain(item, model) for item in error.errors())) from None


def _explain(item: Any, model: type[BaseModel]) -> str:
    field = ".".join(str(part) for part in item["loc"]) or "(top level)"
    if item["type"] == "extra_forbidden":
        for part in item["loc"][:-1]:
            annotation = model.model_fields[part].annotation
            if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
                break
            model = annotation
        return f"unknown key `{field}`; known here: {', '.join(model.model_fields)}"
    if item["type"] == "missing":
        return f"`{field}` is missing"
    given = "" if item["type"] == SECRET else f" (given: {item['input']!r:.80})"
    return f"`{field}`: {item['msg'].removeprefix('Value error, ')}{given}"


def fingerprint(*parts: Any) -> str:
    """Return sixteen hex digits that change when any part (JSON data or :class:`Section`) changes."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
