"""Steps of a job: Prefect tasks inside of a flow run, plain functions without Prefect."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")


def step(name: str, **options: Any) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:  # noqa: ANN401
    """Make a function a step, which Prefect is not imported for.

    Results are not persisted: Prefect would pickle them, and whoever can write the home would run code.

    Args:
        name: Name of the task.
        options: Other arguments of `prefect.task`, such as `retries`.
    """

    def decorate(function: Callable[Given, Result]) -> Callable[Given, Result]:
        @wraps(function)
        def run(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            if not _is_in_flow():
                return function(*args, **kwargs)
            from prefect import task

            return task(name=name, persist_result=False, **options)(function)(*args, **kwargs)

        return run

    return decorate


def _is_in_flow() -> bool:
    if "prefect.context" not in sys.modules:
        return False
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None
