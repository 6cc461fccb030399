"""The OpenAPI document: bodies are read by hand, so they are described by hand as well."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel

REFERENCE = "#/components/schemas/{model}"
STATUSES = {
    400: "The request is wrong; the error names the field.",
    401: "No API key, or an unknown one.",
    404: "No such model.",
    408: "The body took too long.",
    413: "The body is too large.",
    415: "The body isn't application/json.",
    429: "A limit is reached; Retry-After says when to try again.",
    500: "The server failed.",
    503: "The server is stopping.",
    504: "The answer took too long.",
}


class ErrorFields(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorFields


def errors_of(body: type[BaseModel] | None = None, stream: bool = False) -> dict[str, Any]:
    """Arguments of a FastAPI route: the errors that it may answer with, and the form of its body."""
    wanted: dict[str, Any] = {
        "responses": {code: {"description": text, "model": ErrorBody} for code, text in STATUSES.items()}
    }
    if stream:
        kinds: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
        wanted["responses"][200] = {"content": kinds | {"text/event-stream": {"schema": {"type": "string"}}}}
    if body is not None:
        schema = body.model_json_schema(ref_template=REFERENCE)
        wanted["openapi_extra"] = {
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}
        }
    return wanted


def describe(app: FastAPI) -> None:
    """Move definitions that bodies share to where the document keeps them, and say how a key is sent."""
    document = app.openapi()
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path in document["paths"].values():
        for operation in path.values():
            kind: Literal["application/json"] = "application/json"
            schema = operation.get("requestBody", {}).get("content", {}).get(kind, {}).get("schema", {})
            schemas.update(schema.pop("$defs", {}))
    app.openapi_schema = document
