"""Figures for Prometheus about scheduled flow runs, Prefect's server and the disk under DARKROOM_HOME."""

import shutil
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import FlowRun
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prometheus_client import Gauge, start_http_server

ENDED = (StateType.COMPLETED, StateType.FAILED, StateType.CRASHED)

_prefect_up = Gauge("darkroom_prefect_up", "Whether Prefect's server answered the last time it was asked")
_last_failed = Gauge(
    "darkroom_deployment_last_run_failed", "Whether a deployment's last run failed or crashed", ["deployment"]
)
_last_success = Gauge(
    "darkroom_deployment_last_success_timestamp_seconds", "When a deployment's last good run ended", ["deployment"]
)
_disk_size = Gauge("darkroom_disk_size_bytes", "Size of the disk under DARKROOM_HOME")
_disk_free = Gauge("darkroom_disk_free_bytes", "What of it is free")


def serve_figures(port: int, home: Path) -> None:
    """Answer Prometheus on every address; the disk is looked at when it asks."""
    _disk_size.set_function(lambda: shutil.disk_usage(home).total)
    _disk_free.set_function(lambda: shutil.disk_usage(home).free)
    start_http_server(port)


def note_prefect(is_up: bool) -> None:
    """Publish whether Prefect's server answered."""
    _prefect_up.set(is_up)


def note_deployments(client: SyncPrefectClient) -> None:
    """Publish how the last runs of each deployment ended; one that never succeeded counts from its creation."""
    flows = {flow.id: flow.name for flow in client.read_flows()}
    for deployment in client.read_deployments():
        name = f"{flows.get(deployment.flow_id, 'unknown')}/{deployment.name}"
        last = _read_last(client, deployment, ENDED)
        _last_failed.labels(name).set(last is not None and last.state_type is not StateType.COMPLETED)
        good = _read_last(client, deployment, (StateType.COMPLETED,))
        since = deployment.created if good is None else good.end_time
        if since is not None:
            _last_success.labels(name).set(since.timestamp())


def _read_last(
    client: SyncPrefectClient, deployment: DeploymentResponse, types: tuple[StateType, ...]
) -> FlowRun | None:
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))),
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
        sort=FlowRunSort.END_TIME_DESC,
        limit=1,
    )
    return found[0] if found else None
