"""Connection to Ray: a cluster by its address, or a Ray of this machine that ends with the command."""

import json
import math
import os
import platform
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from model_code.errors import TrainingError, first_line
from serving.bundle.processors import count_cpus

ANSWER_S = 60
OBJECT_STORE_BYTES = 100_000_000  # requests and lines are small; Ray would take a third of the memory
# Ray reads them when it is imported.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a call after the end must not start another Ray
    "RAY_prestart_worker_first_driver": "0",
}
# In a process of its own: Ray's client may wait for ever for a port that is not Ray's, or end its process.
ASK = """
import json, sys
from ray._common.usage.usage_lib import get_cluster_metadata
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import GcsClient
print(json.dumps(get_cluster_metadata(GcsClient(address=canonicalize_bootstrap_address(sys.argv[1])))))
"""


def connect(address: str | None) -> Any:  # noqa: ANN401 - a module that is not installed everywhere
    """Return Ray, connected to a cluster or, without an address, to one of this machine that it starts.

    Raises:
        TrainingError: Nothing answers as Ray, another version of Ray or Python does, or Ray does not start.
    """
    os.environ.update(ENVIRONMENT | os.environ)
    options: dict[str, object] = {"address": address}
    if address is None:
        # The token keeps others out: Ray listens on every interface. Ray would write one into ~/.ray.
        os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)} | os.environ)
        options = {
            "address": "local",
            "_node_ip_address": "127.0.0.2",  # for 127.0.0.1 Ray takes the machine's address in the network
            "num_cpus": count_cpus(),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    else:
        check(address)
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        with _silent_stderr():
            ray.init(**options, log_to_driver=False, logging_level="critical")
    except Exception as error:
        reason = first_line(error)
        remedy = "is this machine a node of it (`ray start`)?" if address else "`ray start --head` says more"
        raise TrainingError(f"Ray {f'at {address}' if address else 'did not start'}: {reason}; {remedy}") from error
    finally:
        if before is not None and current_thread() is main_thread():  # Ray replaces it
            signal.signal(signal.SIGTERM, before)
    ray._private.worker._worker_logs_enabled = False  # what Ray says of nodes that die, the runs' lines show
    return ray


def count_places(nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many runs have a GPU each, or where there is none a node each.

    Args:
        nodes: Resources of every node by Ray's names.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    return gpus or max(1, sum(node.get("CPU", 0) >= 1 for node in nodes))


def share(nodes: Sequence[Mapping[str, float]], at_once: int) -> tuple[int, float]:
    """Return the processors and the GPUs of a run: the most with which `at_once` fit at the same time.

    A run has at most one GPU, or the same part of one as every other; where there are GPUs, only their nodes count.

    Args:
        nodes: Resources of every node by Ray's names.
        at_once: Runs at the same time.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if gpus:
        parts = math.ceil(at_once / gpus)
        cpus = [int(node.get("CPU", 0) // (int(node["GPU"]) * parts)) for node in nodes if node.get("GPU", 0) >= 1]
        return max(1, min(cpus)), math.floor(10_000 / parts) / 10_000
    sizes = [int(node.get("CPU", 0)) for node in nodes]
    fitting = (cpus for cpus in range(max(sizes), 1, -1) if sum(size // cpus for size in sizes) >= at_once)
    return next(fitting, 1), 0


def name_death(error: Exception) -> str:
    """Return in one line why an actor died, from Ray's text of several: the error of its start, or the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if "dead because" in line]
    return (reasons or lines)[-1]


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Let nothing reach standard error while the block runs: Ray's C++ library writes there that it writes nothing."""
    sys.stderr.flush()
    with Path(os.devnull).open("wb") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def check(address: str) -> None:
    """Refuse an address where no Ray answers, or one of another version.

    Raises:
        TrainingError: Nothing answers as Ray, or another version does.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", ASK, address], capture_output=True, timeout=ANSWER_S, check=True, text=True
        )
        metadata = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        raise TrainingError(
            f"no Ray cluster answers at {address} within {ANSWER_S} s; `ray start --head` prints the address, and a "
            "cluster with a token needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from error
    here = {"ray_version": version("ray"), "python_version": platform.python_version()}
    there = {name: metadata.get(name) for name in here}
    if there != here:
        raise TrainingError(
            f"the cluster at {address} has Ray {there['ray_version']} on Python {there['python_version']}, this "
            f"machine Ray {here['ray_version']} on Python {here['python_version']}; all nodes need the same versions"
        )
