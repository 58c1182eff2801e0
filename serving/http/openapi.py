"""The OpenAPI description of the service, built from the models that the service answers with."""

from typing import Any

from pydantic.json_schema import models_json_schema

from serving.http.feedback_api import FeedbackRequest
from serving.limits import DEFAULT_TOP_K, MAX_IMAGE_BYTES, MAX_IMAGES
from serving.models.predictions import ErrorAnswer, FeedbackAnswer, ModelsAnswer, PredictAnswer

_REFUSALS = {
    "400": "Not an image, or a malformed body",
    "401": "No API key, or an unknown one, where the service asks for one",
    "403": "A web page of another origin, which the service was not told to allow",
    "404": "No such model",
    "408": "The body did not arrive in time",
    "413": "Too many bytes, pixels or images",
    "415": "Wrong content type",
    "422": "Bad parameter",
}
# The service asks for a key only where it is started with some.
_SECURITY: list[dict[str, list[str]]] = [{}, {"bearer": []}, {"key": []}]
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def describe_api(root_path: str = "") -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of every route that is meant for users.

    Args:
        root_path: Prefix under which clients reach the service behind a proxy that strips it, e.g. `/ml/darkroom`.
    """
    _, definitions = models_json_schema(
        [
            *((model, "serialization") for model in (PredictAnswer, ModelsAnswer, FeedbackAnswer, ErrorAnswer)),
            (FeedbackRequest, "validation"),
        ],
        ref_template="#/components/schemas/{model}",
    )
    return {
        "openapi": "3.1.0",
        **({"servers": [{"url": root_path}]} if root_path else {}),
        "info": {
            "title": "Darkroom",
            "version": "1",
            "description": "Class probabilities of images, from the released models.",
        },
        "paths": {
            "/v1/predict": {"post": _describe_predict()},
            "/v1/feedback": {"post": _describe_feedback()},
            "/v1/models": {
                "get": {
                    "operationId": "listModels",
                    "summary": "The loaded models, and the releases that could not be loaded",
                    "security": _SECURITY,
                    "responses": {
                        "200": _answer("Loaded models", "ModelsAnswer"),
                        "401": _answer(_REFUSALS["401"], "ErrorAnswer"),
                    },
                }
            },
            "/livez": {"get": _describe_probe("isAlive", "Event loop and classification make progress")},
            "/readyz": {"get": _describe_probe("isReady", "A model is loaded and images can be decoded", "Not so")},
            "/metrics": {"get": _describe_probe("readMetrics", "Metrics in Prometheus text format")},
            "/": {"get": _describe_probe("showPage", "A page to try the service with an image", kind="text/html")},
            "/openapi.json": {"get": _describe_probe("describe", "This description", kind="application/json")},
        },
        "components": {"schemas": definitions["$defs"], "securitySchemes": _KEYS},
    }


def _describe_predict() -> dict[str, Any]:
    raw_image = {"schema": {"type": "string", "format": "binary", "maxLength": MAX_IMAGE_BYTES}}
    image_list = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "maxItems": MAX_IMAGES,
    }
    form = {
        "type": "object",
        "required": ["image"],
        "properties": {"image": image_list},
        "additionalProperties": False,
    }
    responses = {"200": _answer("One prediction per image, in the order they were sent", "PredictAnswer")}
    responses |= {status: _answer(text, "ErrorAnswer") for status, text in _REFUSALS.items()}
    responses |= _describe_overload()
    return {
        "operationId": "predict",
        "summary": "Classify one image, or up to 64 in one batch",
        "security": _SECURITY,
        "parameters": [
            {
                "name": "model",
                "in": "query",
                "description": "Registered name; when left out: the only model, or cifar10",
                "schema": {"type": "string"},
            },
            {
                "name": "top_k",
                "in": "query",
                "description": f"Classes to list; when left out {DEFAULT_TOP_K}, or all if there are fewer",
                "schema": {"type": "integer", "minimum": 1},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                "image/*": raw_image,
                "application/octet-stream": raw_image,
                "multipart/form-data": {"schema": form},
            },
        },
        "responses": responses,
    }


def _describe_feedback() -> dict[str, Any]:
    text = {"type": "string"}
    form = {
        "type": "object",
        "required": ["image", "label"],
        "properties": {"image": {"type": "string", "format": "binary"}, "label": text, "model": text},
        "additionalProperties": False,
    }
    responses = {"200": _answer("The label is stored", "FeedbackAnswer")}
    responses |= {status: _answer(text, "ErrorAnswer") for status, text in _REFUSALS.items()}
    responses["404"] = _answer("No such model, no such image, or the service takes no feedback", "ErrorAnswer")
    responses |= _describe_overload()
    responses["507"] = _answer("The label cannot be stored: the limit is reached, or the disk full", "ErrorAnswer")
    return {
        "operationId": "giveFeedback",
        "summary": "Store the true label of an image, or of one that the request log keeps",
        "security": _SECURITY,
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": form},
                "application/json": {"schema": {"$ref": "#/components/schemas/FeedbackRequest"}},
            },
        },
        "responses": responses,
    }


def _describe_overload() -> dict[str, Any]:
    wait = {"description": "Seconds to wait before the next try", "schema": {"type": "integer"}}
    answer = _answer("Overloaded, or no model is loaded yet", "ErrorAnswer")
    return {"503": answer | {"headers": {"Retry-After": wait}}}


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


def _answer(description: str, model: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model}"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}
