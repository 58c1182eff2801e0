"""Brings back what died without a word: flow runs whose process was killed, and scheduled runs that piled up.

A flow run says every half minute that it lives. One that has been silent for `DEAD_AFTER` is started again, and goes on
from its checkpoint; after `MOST_TRIES` it is crashed, and told so. Of the runs of one deployment that are late only the
newest is kept. The slot of a dead run is free when its lease ends (flows/device_slot.py).
"""

import time
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import FlowRun
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.exceptions import PrefectException
from prefect.states import Cancelled, Crashed, Scheduled

from flows.notification import send
from flows.watching import note_deployments, note_prefect, serve_figures
from model_code.settings import load_settings

DEAD_AFTER = timedelta(seconds=120)
LATE_AFTER = timedelta(minutes=15)
MOST_TRIES = 5
HEARTBEAT = "prefect.flow-run.heartbeat"


def keep_healing(every_s: float, port: int | None = None) -> None:
    """Look again every `every_s` seconds, until the process is told to end.

    What was silent while the server did not answer may live: a look counts only when the server has answered for
    longer than a run may be silent.

    Args:
        every_s: Between two looks.
        port: Where Prometheus asks for figures (`flows/watching.py`); None answers nobody.
    """
    if port is not None:
        serve_figures(port, load_settings().home)
    answers_since: datetime | None = None
    while True:
        now = datetime.now(UTC)
        try:
            with get_client(sync_client=True) as client:
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
            print(f"Prefect does not answer ({error}); looking again in {every_s:.0f} s", flush=True)
        time.sleep(every_s)


def heal(client: SyncPrefectClient, now: datetime) -> list[str]:
    """Start dead runs again, or crash them; skip scheduled runs that newer ones overtook. Returns what was done."""
    started = _read_runs(client, StateType.RUNNING, StateType.PENDING)
    alive = _find_alive(client, [run.id for run in started], now - DEAD_AFTER)
    lines = [_revive(client, run) for run in started if run.id not in alive and _began(run) < now - DEAD_AFTER]
    return lines + _skip_overtaken(client, now)


def _read_runs(client: SyncPrefectClient, *types: StateType) -> list[FlowRun]:
    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))))
    return client.read_flow_runs(flow_run_filter=wanted, limit=200)


def _began(run: FlowRun) -> datetime:
    assert run.state is not None, "read with its state"
    return run.state.timestamp


def _find_alive(client: SyncPrefectClient, run_ids: list[UUID], since: datetime) -> set[UUID]:
    """Return the runs that said since then that they live."""
    alive = set()
    for run_id in run_ids:
        beats = client.read_events(
            EventFilter(
                occurred=EventOccurredFilter(since=since),
                event=EventNameFilter(name=[HEARTBEAT]),
                resource=EventResourceFilter(id=[f"prefect.flow-run.{run_id}"]),
            ),
            limit=1,
        )
        if beats.events:
            alive.add(run_id)
    return alive


def _revive(client: SyncPrefectClient, run: FlowRun) -> str:
    silence = f"silent for {DEAD_AFTER.total_seconds():.0f} s"
    if run.deployment_id is not None and run.run_count < MOST_TRIES:
        client.set_flow_run_state(
            run.id, Scheduled(name="AwaitingRetry", message=f"{silence}: its process died"), force=True
        )
        return f"{run.name}: {silence}, starts again"
    message = f"{silence} after {run.run_count} tries"
    client.set_flow_run_state(run.id, Crashed(message=message), force=True)
    send(client.read_flow(run.flow_id).name, run, "Crashed", message)
    return f"{run.name}: {message}, crashed"


def _skip_overtaken(client: SyncPrefectClient, now: datetime) -> list[str]:
    late = defaultdict(list)
    for run in _read_runs(client, StateType.SCHEDULED):
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
