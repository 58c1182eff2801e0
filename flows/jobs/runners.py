"""Options of the runner that trains the runs of a study or a sweep side by side, and the runner itself."""

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from model_code.errors import UsageError
from model_code.settings import load_settings

if TYPE_CHECKING:
    from flows.operations.runner import Runner

RunnerName = Literal["local", "ray"]
RUNNER = "local: processes of this machine; ray: nodes of a Ray cluster, or a Ray of this machine."
ADDRESS = "Ray cluster that this machine is a node of."
_ADDRESS_PATTERN = re.compile(r"[^\s/:]+:[0-9]{1,5}|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}")


def check_runner(runner: RunnerName, address: str | None, *, is_used: bool = True) -> None:
    """Refuse an address that Ray would not take, and Ray where it is used and not installed."""
    if runner != "ray":
        if address is not None:
            raise UsageError(f"--address {address} needs --runner ray")
        return
    if address is not None and not _ADDRESS_PATTERN.fullmatch(address):
        raise UsageError(f"--address {address}: give HOST:PORT, as `ray start --head` prints it")
    if is_used and find_spec("ray") is None:
        raise UsageError('--runner ray needs Ray, which is not installed: pip install "darkroom[ray]"')


def check_reachable(address: str | None) -> None:
    """Refuse a cluster whose nodes have homes of their own and could not write to this machine's MLflow."""
    settings = load_settings()
    if address is not None and settings.storage is not None and not settings.has_mlflow_server:
        raise UsageError(
            f"with DARKROOM_STORAGE the nodes of {address} have homes of their own, and cannot write to "
            f"{settings.tracking_uri}: set MLFLOW_TRACKING_URI to a server's address, or give --offline"
        )


def open_runner(runner: RunnerName, at_once: int | None, address: str | None) -> "Runner | None":
    """Return what trains runs side by side; None for one after another in this process.

    Args:
        runner: Kind of it.
        at_once: Most runs at the same time; None for what Ray has room for, else one.
        address: Ray cluster; None for this machine.
    """
    if runner == "ray":
        from flows.operations.ray_runs import RayRuns

        return RayRuns(at_once, address)
    if at_once is None or at_once == 1:
        return None
    from flows.operations.run_processes import RunProcesses

    return RunProcesses(at_once)
