"""Hands prefect.yaml to a Prefect server: work pools, the slots of devices, every deployment."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.workers.base import BaseWorker

from flows.operations.device_slot import name_slot
from flows.operations.prefect_server import get_server_address, naming_the_address, naming_the_password
from model_code.errors import DarkroomError, UsageError

POOLS = {"darkroom": "process", "darkroom-docker": "docker", "darkroom-kubernetes": "kubernetes"}
# Beside prefect.yaml; the other kinds have Prefect's own.
JOB_TEMPLATES = {"kubernetes": Path("infra/k8s/job-template.json")}
DEVICES = ("cpu", "cuda")
FILE = Path("prefect.yaml")


def deploy_all(file: Path = FILE) -> None:
    """Create what is missing and update every deployment; pools and slots that are there stay as they are.

    Raises:
        UsageError: The file is not there, no server is named, or it does not answer or wants another password.
        DarkroomError: Prefect refused a deployment; its own lines say why.
    """
    if not file.is_file():
        raise UsageError(f"{file.resolve()} is not there; run `darkroom deploy` where prefect.yaml is")
    get_server_address()
    with naming_the_password(), naming_the_address(), get_client(sync_client=True) as client:
        client.hello()
        for name, kind in POOLS.items():
            try:
                template = _read_template(file.parent, kind)
                client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template))
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


def _read_template(folder: Path, kind: str) -> dict[str, Any]:
    """Return what a pool's runs are made of, with the form for it."""
    if kind not in JOB_TEMPLATES:
        worker = BaseWorker.get_worker_class_from_type(kind)
        assert worker is not None, "the workers of POOLS are installed"
        return worker.get_default_base_job_template()
    file = folder / JOB_TEMPLATES[kind]
    if not file.is_file():
        raise UsageError(f"{file} is not there; run `darkroom deploy` where prefect.yaml and infra are")
    template: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return template
