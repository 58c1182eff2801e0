"""Endpoints of the contract, registered beside their definition: route, description and handler in one place.

Every file of this folder whose name ends in `_api` is read for them (`serving/http/api.py`).
"""

import inspect
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request

REFUSALS = {
    "400": "Not an image, or a malformed body",
    "401": "No API key, or an unknown one, where the service asks for one",
    "403": "A web page of another origin, which the service was not told to allow",
    "404": "No such model",
    "408": "The body did not arrive in time",
    "413": "Too many bytes, pixels or images",
    "415": "Wrong content type",
    "422": "Bad parameter",
}
# Paths of the Open Inference Protocol, whose errors have a form of their own.
INFERENCE_PREFIX = "/v2"
INFERENCE_PATHS = (f"{INFERENCE_PREFIX}/health/", f"{INFERENCE_PREFIX}/models/")
# The service asks for a key only where it is started with some.
SECURITY: list[dict[str, list[str]]] = [{}, {"bearer": []}, {"key": []}]

Description = dict[str, Any]
Handle = Callable[[Request], Awaitable[BaseModel]]
Handler = TypeVar("Handler", bound=Handle)


@dataclass(frozen=True)
class Endpoint:
    """One operation that asks for a key where the service has some.

    Attributes:
        method: `GET` or `POST`.
        path: Route, with path parameters in braces.
        handle: Returns the body of the answer; raises ServingError to refuse.
        answer: Type of that body.
        reads: Type of a JSON body; None without.
        operation: The operation in OpenAPI's words.
    """

    method: str
    path: str
    handle: Handle
    answer: type[BaseModel]
    reads: type[BaseModel] | None
    operation: Description


ENDPOINTS: list[Endpoint] = []


def endpoint(
    method: str,
    path: str,
    *,
    answer: type[BaseModel],
    success: str,
    parameters: Sequence[Description] = (),
    refusals: Collection[str] = (),
    further: Description | None = None,
    body: Description | None = None,
    reads: type[BaseModel] | None = None,
) -> Callable[[Handler], Handler]:
    """Register a handler; its name becomes the operation's (`list_models`: `listModels`), its docstring the summary.

    Args:
        method: `GET` or `POST`.
        path: Route; call a path parameter that takes a registered name `model`.
        answer: Type of the answer's body.
        success: Content of a 200.
        parameters: Results of `describe_parameter`.
        refusals: Keys of `REFUSALS` that it answers with, beside 401.
        further: Responses beside those, by status.
        body: Content of the request's body by type; None without a body.
        reads: Type of a JSON body that `body` refers to.
    """

    def enter(handle: Handler) -> Handler:
        first, *others = handle.__name__.split("_")
        described = sorted({"401", *refusals})
        error = "InferenceError" if path.startswith(INFERENCE_PREFIX) else "ErrorAnswer"
        operation: Description = {
            "operationId": first + "".join(map(str.capitalize, others)),
            "summary": (inspect.getdoc(handle) or "").splitlines()[0].rstrip("."),
            "security": SECURITY,
            **({"parameters": list(parameters)} if parameters else {}),
            **({"requestBody": {"required": True, "content": body}} if body else {}),
            "responses": {"200": describe_answer(success, answer.__name__)}
            | {status: describe_answer(REFUSALS[status], error) for status in described}
            | (further or {}),
        }
        ENDPOINTS.append(Endpoint(method, path, handle, answer, reads, operation))
        return handle

    return enter


def describe_parameter(name: str, where: str, description: str, schema: Description | None = None) -> Description:
    """Return a parameter; `where` is `query` or `path`, the schema that of text if None."""
    required = {"required": True} if where == "path" else {}
    return {"name": name, "in": where, **required, "description": description, "schema": schema or {"type": "string"}}


def describe_answer(description: str, model: str = "ErrorAnswer") -> Description:
    """Return a response whose JSON body is of a model."""
    schema = {"$ref": f"#/components/schemas/{model}"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def describe_overload(model: str = "ErrorAnswer") -> Description:
    """Return the response 503, whose JSON body is of a model, with the header that says when to try again."""
    wait = {"description": "Seconds to wait before the next try", "schema": {"type": "integer"}}
    return {"503": describe_answer("Overloaded, or no model is loaded yet", model) | {"headers": {"Retry-After": wait}}}
