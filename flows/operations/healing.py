"""Brings back what died without a word: flow runs whose process was killed, and scheduled runs that piled up.

A flow run says every half minute that it lives. One that did and has been silent for `DEAD_AFTER` is started again, and
goes on from its checkpoint; after `MOST_TRIES` it is crashed, and told so. Of the runs of one deployment that are late
only the newest is kept. The slot of a dead run is free when its lease ends (flows/operations/device_slot.py).
"""

import time
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import FlowRun
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.exceptions import PrefectException
from prefect.states import Cancelled, Crashed, Scheduled

from flows.operations.notification import send
from flows.operations.prefect_server import get_server_address, naming_the_password
from flows.operations.watching import note_deployments, note_prefect, serve_figures
from model_code.errors import UsageError
from model_code.settings import load_settings

DEAD_AFTER = timedelta(seconds=120)
LATE_AFTER = timedelta(minutes=15)
PENDING_AFTER = timedelta(minutes=15)
MOST_TRIES = 5
PROCESS_POOL = "darkroom"
HEARTBEAT = "prefect.flow-run.heartbeat"


def keep_healing(every_s: float, port: int | None = None) -> None:
    """Look again every `every_s` seconds, until the process is told to end.

    What was silent while the server did not answer may live: a look counts only when the server has answered for
    longer than a run may be silent.

    Args:
        every_s: Between two looks.
        port: Port on which Prometheus asks for figures (`flows/operations/watching.py`); None answers nobody.

    Raises:
        UsageError: No server is named, it wants another password, or the port is taken.
    """
    address = get_server_address()
    if port is not None:
        try:
            serve_figures(port, load_settings().home)
        except OSError as error:
            raise UsageError(f"--metrics-port {port}: {error.strerror}; give a free one") from error
    answers_since: datetime | None = None
    while True:
        now = datetime.now(UTC)
        try:
            with naming_the_password(), get_client(sync_client=True) as client:
                client.hello()
                note_prefect(is_up=True)
                answers_since = answers_since or now
                if now - answers_since > DEAD_AFTER:
                    for line in heal(client, now):
                        print(line, flush=True)
                note_deployments(client)
        except (httpx.HTTPError, PrefectException) as error:
            answers_since = None
            note_prefect(is_up=False)
            print(f"Prefect does not answer at {address} ({error}); looking again in {every_s:.0f} s", flush=True)
        time.sleep(every_s)


def heal(client: SyncPrefectClient, now: datetime) -> list[str]:
    """Start dead runs again, or crash them; skip scheduled runs that newer ones overtook. Returns what was done."""
    dead = [run for run in _read_runs(client, StateType.RUNNING) if _is_silent(client, run, now)]
    dead += [run for run in _read_runs(client, StateType.PENDING) if _was_never_begun(run, now)]
    # Without those of the future, which are more than one answer holds.
    due = _read_runs(client, StateType.SCHEDULED, FlowRunFilterNextScheduledStartTime(before_=now))
    lost = [run for run in due if _lost_its_pause(client, run, now)]
    lines = [_revive(client, run) for run in dead + lost]
    return lines + _skip_overtaken(client, [run for run in due if run not in lost], now)


def _read_runs(
    client: SyncPrefectClient, state: StateType, due: FlowRunFilterNextScheduledStartTime | None = None
) -> list[FlowRun]:
    wanted = FlowRunFilterState(type=FlowRunFilterStateType(any_=[state]))
    return client.read_flow_runs(flow_run_filter=FlowRunFilter(state=wanted, next_scheduled_start_time=due), limit=200)


def _is_silent(client: SyncPrefectClient, run: FlowRun, now: datetime) -> bool:
    """Whether a run said that it lives, and has not for long; one that never did says nothing about itself."""
    beats = client.read_events(
        EventFilter(
            event=EventNameFilter(name=[HEARTBEAT]),
            resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
        ),
        limit=1,
    ).events
    return bool(beats) and max(beats[0].occurred, _changed(run)) < now - DEAD_AFTER


def _was_never_begun(run: FlowRun, now: datetime) -> bool:
    """Whether a worker took a run and died; a container or job may take long to start, and is not ours to judge."""
    return run.work_pool_name == PROCESS_POOL and _changed(run) < now - PENDING_AFTER


def _lost_its_pause(client: SyncPrefectClient, run: FlowRun, now: datetime) -> bool:
    """Whether a run that failed should have tried again in its own process, which is gone."""
    due = run.next_scheduled_start_time
    waits_for_itself = run.empirical_policy.retry_type == "in_process"
    return waits_for_itself and due is not None and due < now - DEAD_AFTER and _is_silent(client, run, now)


def _changed(run: FlowRun) -> datetime:
    assert run.state is not None, "read with its state"
    return run.state.timestamp


def _revive(client: SyncPrefectClient, run: FlowRun) -> str:
    # First crashed: from there Prefect gives the run to any worker again, whatever its retries were.
    if run.deployment_id is not None and run.run_count < MOST_TRIES:
        client.set_flow_run_state(run.id, Crashed(message="silent: its process died"), force=True)
        client.set_flow_run_state(run.id, Scheduled(name="AwaitingRetry", message="its process died"))
        return f"{run.name}: silent, starts again"
    message = f"silent after {run.run_count} tries"
    client.set_flow_run_state(run.id, Crashed(message=message), force=True)
    send(client.read_flow(run.flow_id).name, run, "Crashed", message)
    return f"{run.name}: {message}, crashed"


def _skip_overtaken(client: SyncPrefectClient, scheduled: list[FlowRun], now: datetime) -> list[str]:
    late = defaultdict(list)
    for run in scheduled:
        due = run.next_scheduled_start_time
        if run.auto_scheduled and run.deployment_id is not None and due is not None and due < now - LATE_AFTER:
            late[run.deployment_id].append((due, run))
    lines = []
    for runs in late.values():
        for run in _all_but_newest(runs):
            client.set_flow_run_state(
                run.id, Cancelled(message="skipped: a newer run of its schedule is due"), force=True
            )
            lines.append(f"{run.name}: skipped, a newer run of its schedule is due")
    return lines


def _all_but_newest(runs: Iterable[tuple[datetime, FlowRun]]) -> list[FlowRun]:
    return [run for _, run in sorted(runs, key=lambda dated: dated[0])[:-1]]
