"""The OpenAPI description, with what FastAPI cannot know: bodies that this package parses itself, limits, refusals, tokens."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from raycluster.serving.schemas import DEFAULT_TOP_K, AssignRequest, EmbeddingsRequest, ErrorReply
from raycluster.serving.settings import Limits

_REFUSALS = {
    401: "The token is missing, or it is not one of this endpoint's tokens.",
    404: "There is no such cluster.",
    405: "The path does not support this method.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body has a media type that is not accepted, or is compressed.",
    421: "The endpoint does not answer under this host name.",
    422: "The request is not as described here.",
    503: "The endpoint is overloaded, or no model answers; try again after `Retry-After` seconds.",
}
_ASSIGN = (408, 413, 415, 422, 503)
_MAY_REFUSE = {
    "assign": _ASSIGN,
    "assign_embeddings": _ASSIGN,
    "clusters": (422, 503),
    "cluster": (404, 422, 503),
    "model": (503,),
    "readyz": (503,),
    "metrics": (503,),
}
_OPEN = ("healthz", "readyz")


def describe(app: FastAPI, limits: Limits, tokens: bool) -> None:
    """Complete the OpenAPI description of the app. `tokens`: whether the app asks for bearer tokens."""
    made = app.openapi()
    bodies: list[type[BaseModel]] = [AssignRequest, EmbeddingsRequest, ErrorReply]
    _, definitions = models_json_schema(
        [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(definitions["$defs"])
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    _bound(schemas["AssignRequest"], limits.max_items, limits.max_top_k)
    _bound(schemas["EmbeddingsRequest"], limits.max_embeddings, limits.max_top_k)
    # A picture has exactly one of the two fields. Pydantic checks this, but cannot describe it.
    schemas["PictureItem"]["oneOf"] = [{"required": ["image_base64"]}, {"required": ["uri"]}]
    operations = {operation["operationId"]: operation for path in made["paths"].values() for operation in path.values()}
    operations["assign"]["requestBody"] = _body({"multipart/form-data": _form(limits), **_json("AssignRequest")})
    operations["assign_embeddings"]["requestBody"] = _body(_json("EmbeddingsRequest"))
    for name, operation in operations.items():
        operation["responses"] = {"200": operation["responses"]["200"], **_refusals(name, tokens)}
        if tokens and name not in _OPEN:
            operation["security"] = [{"token": []}]
    if tokens:
        made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    app.openapi_schema = made


def _bound(schema: dict[str, Any], max_items: int, max_top_k: int) -> None:
    schema["properties"]["items"]["maxItems"] = max_items
    schema["properties"]["top_k"]["maximum"] = max_top_k


def _form(limits: Limits) -> dict[str, Any]:
    files = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "maxItems": limits.max_items,
        "description": "The pictures; the name of each file comes back as the item's id.",
    }
    top_k = {"type": "integer", "minimum": 1, "maximum": limits.max_top_k, "default": DEFAULT_TOP_K}
    schema = {
        "type": "object",
        "properties": {"files": files, "top_k": top_k},
        "required": ["files"],
        "additionalProperties": False,
    }
    return {"schema": schema}


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": content}


def _refusals(name: str, tokens: bool) -> dict[str, Any]:
    statuses = [*_MAY_REFUSE.get(name, ()), 405, 421, *([401] if tokens and name not in _OPEN else [])]
    return {
        str(status): {
            "description": _REFUSALS[status],
            "content": _json("ErrorReply"),
            **({"headers": {"Retry-After": {"schema": {"type": "integer"}}}} if status == 503 else {}),
        }
        for status in sorted(statuses)
    }
