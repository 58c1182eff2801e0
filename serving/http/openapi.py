"""The OpenAPI description of the service, built from its endpoints and the models that they answer with."""

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from serving.http.endpoint import ENDPOINTS
from serving.models.predictions import ErrorAnswer, InferenceError

_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def describe_api(root_path: str = "") -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of every route that is meant for users.

    Args:
        root_path: Prefix under which clients reach the service behind a proxy that strips it, e.g. `/ml/darkroom`.
    """
    return _describe_api() | ({"servers": [{"url": root_path}]} if root_path else {})


@cache  # the schemas take a tenth of a second, and clients may send any prefix
def _describe_api() -> dict[str, Any]:
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [(one.answer, "serialization") for one in ENDPOINTS]
    models += [(one.reads, "validation") for one in ENDPOINTS if one.reads]
    models += [(ErrorAnswer, "serialization"), (InferenceError, "serialization")]
    _, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")
    paths: dict[str, dict[str, Any]] = {}
    for one in ENDPOINTS:
        paths.setdefault(one.path, {})[one.method.lower()] = one.operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Darkroom",
            "version": "1",
            "description": "Class probabilities of images, from the released models.",
        },
        "paths": {
            **paths,
            "/livez": {"get": _describe_probe("isAlive", "Event loop and classification make progress")},
            "/readyz": {"get": _describe_probe("isReady", "A model is loaded and images can be decoded", "Not so")},
            "/metrics": {"get": _describe_probe("readMetrics", "Metrics in Prometheus text format")},
            "/": {"get": _describe_probe("showPage", "A page to try the service with an image", kind="text/html")},
            "/openapi.json": {"get": _describe_probe("describe", "This description", kind="application/json")},
        },
        "components": {"schemas": definitions["$defs"], "securitySchemes": _KEYS},
    }


def _describe_probe(operation: str, yes: str, no: str | None = None, kind: str = "text/plain") -> dict[str, Any]:
    responses: dict[str, Any] = {
        "200": {
            "description": yes,
            "content": {kind: {"schema": {"type": "object" if kind == "application/json" else "string"}}},
        },
    }
    if no:
        responses["503"] = {"description": no}
    return {"operationId": operation, "summary": yes, "responses": responses}
