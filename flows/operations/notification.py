"""Tells a webhook of a flow run that failed: one POST of JSON, to the address in DARKROOM_WEBHOOK_URL."""

from typing import Any

import httpx
from prefect import Flow, State
from prefect.client.schemas import FlowRun
from prefect.settings import PREFECT_UI_URL

from model_code.settings import load_settings

TIMEOUT_S = 10.0


def tell(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Post what failed; a webhook that cannot be reached is a line in the log. A flow's hook."""
    send(flow.name, flow_run, state.name, state.message)


def send(flow_name: str, run: FlowRun, state: str | None, message: str | None) -> None:
    """Post one flow run's end as JSON, if there is an address; `text` is what Slack and its like show."""
    address = load_settings().webhook_url
    if address is None:
        return
    link = f"{PREFECT_UI_URL.value()}/runs/flow-run/{run.id}" if PREFECT_UI_URL.value() else None
    text = f"{flow_name} {run.name}: {state}: {message}"
    content = {"text": text, "flow": flow_name, "run": run.name, "run_id": str(run.id), "state": state, "url": link}
    try:
        httpx.post(address, json=content, timeout=TIMEOUT_S).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        # Its text holds the address, which is a secret.
        why = str(error.response.status_code) if isinstance(error, httpx.HTTPStatusError) else type(error).__name__
        print(f"the webhook was not told that {flow_name} {run.name} is {state}: {why}", flush=True)
