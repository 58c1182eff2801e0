"""Hands prefect.yaml to a Prefect server: work pools, the slots of devices, every deployment."""

import os
import subprocess
import sys
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from flows.device_slot import name_slot
from model_code.errors import DarkroomError, UsageError

POOLS = {"darkroom": "process", "darkroom-docker": "docker"}
DEVICES = ("cpu", "cuda")
FILE = Path("prefect.yaml")


def deploy_all(file: Path = FILE) -> None:
    """Create what is missing and update every deployment; pools and slots that are there stay as they are.

    Raises:
        UsageError: The file is not there, or no server is named.
        DarkroomError: Prefect refused a deployment; its own lines say why.
    """
    if not file.is_file():
        raise UsageError(f"{file.resolve()} is not there; run `darkroom deploy` where prefect.yaml is")
    if "PREFECT_API_URL" not in os.environ:
        raise UsageError("PREFECT_API_URL is not set; name the Prefect server, e.g. http://127.0.0.1:4200/api")
    with get_client(sync_client=True) as client:
        for name, kind in POOLS.items():
            try:
                client.create_work_pool(WorkPoolCreate(name=name, type=kind))
                print(f"work pool {name}: created", flush=True)
            except ObjectAlreadyExists:
                print(f"work pool {name}: there already", flush=True)
        for slot in map(name_slot, DEVICES):
            try:
                limit = client.read_global_concurrency_limit_by_name(slot).limit
                print(f"slot {slot}: {limit} at a time, as it was", flush=True)
            except ObjectNotFound:
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=slot, limit=1))
                print(f"slot {slot}: one training at a time", flush=True)
    command = [sys.executable, "-P", "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    if subprocess.run(command, check=False).returncode != 0:
        raise DarkroomError("Prefect refused a deployment; the lines above say why")
