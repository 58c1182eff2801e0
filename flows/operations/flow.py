"""Prefect flows, built from the jobs: each field of a request is a parameter and a part of the form."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from pydantic import Field
from pydantic.fields import FieldInfo

from flows.jobs.job import Choices, Job
from flows.operations.notification import tell
from model_code.errors import DataError, DownloadError, NothingDoneError, UsageError


def build_flow(kind: type[Job], run: Callable[..., None]) -> Flow[..., Any]:
    """Return the flow of a job.

    Args:
        kind: Job that has a flow.
        run: Body of the flow; its parameters are the fields of the job.
    """

    def start(**given: object) -> None:
        run(**given)

    parameters = [_build_parameter(name, field) for name, field in kind.model_fields.items()]
    start.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    start.__doc__ = inspect.getdoc(kind)
    # The request checks its fields itself.
    return Flow(start, kind.flow, flow_run_name=kind.run_name or kind.flow, validate_parameters=False)


def schedule(kind: type[Job]) -> Flow[..., Any]:
    """Return the flow of a job's deployments: it prints to its log, tells of failures and is tried again.

    Twice more after a failure: what was trained is kept, so a try goes on where the last one ended. Not after what only
    a person can mend: "Retry" in Prefect's pages goes on when that is done.
    """

    def run(**given: object) -> None:
        try:
            job = kind.make(**given)
            job.check()
            job.run()
        except NothingDoneError as error:
            print(error)
        except (UsageError, DataError) as error:
            if not isinstance(error, DownloadError):
                _end_retries()
            raise

    retries = 2 if kind.is_retried else 0
    return build_flow(kind, run).with_options(
        log_prints=True, on_failure=[tell], on_crashed=[tell], retries=retries, retry_delay_seconds=60
    )


def _build_parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    choices = (one for one in field.metadata if isinstance(one, Choices) and one.is_in_form)
    offered = next((list(one.values()) for one in choices), None)
    shown: Any = {} if offered is None else {"enum": offered}
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        # Prefect reads the description of a default only.
        default=Field(field.default, description=field.description, json_schema_extra=shown),
        annotation=Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation,
    )


def _end_retries() -> None:
    """Let Prefect not try the flow run of this process again."""
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        with get_client(sync_client=True) as client:
            policy = client.read_flow_run(context.flow_run.id).empirical_policy
            client.update_flow_run(context.flow_run.id, empirical_policy=policy.model_copy(update={"retries": 0}))
