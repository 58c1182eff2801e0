"""Runs of a study or a sweep on the nodes of a Ray cluster, or through a Ray of this machine."""

import os
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import NamedTemporaryFile
from threading import Condition
from typing import Any

from flows.operations.ray_cluster import connect, count_places, name_death, share
from flows.operations.run_processes import THREADS, RunProcesses
from flows.operations.runner import RunRequest
from flows.printing.summaries import Outcome
from model_code.errors import LostRunError, NodeError, StorageError, TrainingError
from model_code.settings import load_settings
from model_code.tracking.provenance import hash_code
from model_code.training.exchange import check_storage, fetch_run

RESTARTS = 3
SECONDS_BETWEEN_LOOKS = 0.2
ANSWER_S = 10.0
SECONDS_BETWEEN_LINES = 60.0
PASSED, KEPT_HERE = ("DARKROOM_", "MLFLOW_", "PYTHONPATH"), "DARKROOM_API_KEY"
HOME, STORAGE = "DARKROOM_HOME", "DARKROOM_STORAGE"


class RayRun:
    """One run on a node, as an actor: its process, whose lines the command takes.

    If the node or this actor dies, Ray makes another one, whose process resumes the run. The process ends with the
    actor, the actor with the command.

    Args:
        request: The run, a `RunRequest` as JSON.
        mark: A file in the home of the command.
        environment: Variables of the process.
        code_sha256: Hash of the command's code, which the node's must be.
    """

    def __init__(self, request: str, mark: str, environment: Mapping[str, str], code_sha256: str) -> None:
        # This process has no other run. Without a shared home a node has its own, perhaps at another place.
        has_own = STORAGE in environment and HOME in os.environ
        os.environ.update({name: value for name, value in environment.items() if not (has_own and name == HOME)})
        self._code_sha256 = code_sha256
        self._processes, self._lines = RunProcesses(1), SimpleQueue[str]()
        # Its thread outlives the run's process.
        self._outcome = ThreadPoolExecutor(1).submit(self._train, request, Path(mark))

    def read(self) -> tuple[list[str], bool, str | None]:
        """Wait for lines; return them, and if there are none any more whether it has ended and its outcome."""
        lines: list[str] = []
        is_done = False
        while not lines and not is_done:
            is_done = self._outcome.done()
            with suppress(Empty):
                lines.append(self._lines.get(timeout=0 if is_done else SECONDS_BETWEEN_LOOKS))
                while True:
                    lines.append(self._lines.get_nowait())
        return (lines, False, None) if lines else ([], True, self._outcome.result())

    def interrupt(self) -> None:
        """Let the run end after its step."""
        self._processes.interrupt()

    def _train(self, request: str, mark: Path) -> str | None:
        if STORAGE not in os.environ and not mark.exists():
            raise NodeError(
                f"node {socket.gethostname()} does not see DARKROOM_HOME={mark.parents[1]}; it must be on a disk that "
                "every node mounts at the same path, or DARKROOM_STORAGE must be set"
            )
        if hash_code() != self._code_sha256:
            raise NodeError(f"node {socket.gethostname()} has another version of Darkroom's code; install the same")
        wanted = RunRequest.model_validate_json(request)
        if wanted.trial is not None and find_spec("optuna") is None:
            raise NodeError(f"node {socket.gethostname()} lacks Optuna, which a sweep needs: pip install 'optuna>=5'")
        outcome = self._processes.train(wanted, self._lines.put)
        return None if outcome is None else outcome.model_dump_json()


class RayRuns:
    """Trains each run where Ray has room for it.

    Args:
        at_once: Most runs at the same time, which share processors and GPUs; None for one on each GPU, or on each node
            where there are none. OMP_NUM_THREADS of the environment goes first.
        address: `HOST:PORT` of a cluster that this machine is a node of; None starts a Ray of this machine.
    """

    def __init__(self, at_once: int | None, address: str | None = None) -> None:
        self.is_local = address is None
        self._place = f"Ray at {address}" if address else "a Ray of this machine"
        settings = load_settings()
        check_storage(settings)
        self._ray: Any = connect(address)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self.at_once = at_once or count_places(nodes)
        self._cpus, self._gpus = share(nodes, self.at_once)
        settings.locks_dir.mkdir(parents=True, exist_ok=True)
        self._mark = NamedTemporaryFile(dir=settings.locks_dir, prefix="ray-")  # noqa: SIM115 - `close` closes it
        self._environment = {
            name: value for name, value in os.environ.items() if name.startswith(PASSED) and name != KEPT_HERE
        } | {
            HOME: str(settings.home),
            "MLFLOW_TRACKING_URI": settings.tracking_uri,
            # Ray itself sets 1 for a part of a processor.
            THREADS: os.environ.get(THREADS) or str(self._cpus),
        }
        self._runs: set[Any] = set()
        self._is_ending = False
        self._lock = Condition()  # none begins once all are told to end

    def describe(self) -> str:
        """Return how many threads and GPUs a run has."""
        threads = self._environment[THREADS]
        gpus = f" and {self._gpus:g} GPU" if self._gpus else ""
        return f"each through {self._place} with {threads} thread{'' if threads == '1' else 's'}{gpus}"

    def train(self, request: RunRequest, say: Callable[[str], None]) -> Outcome | None:
        """Train a run on a node; see `Runner`.

        Raises:
            NodeError: Its node lacks something.
            TrainingError: The process ended without an outcome, or nodes died too often.
        """
        with self._lock:
            if self._is_ending:
                return None
            run = self._start(request)
            self._runs.add(run)
        try:
            is_done, answer = False, run.read.remote()
            while not self._ray.wait([answer], timeout=SECONDS_BETWEEN_LINES)[0]:
                say(f"waits for a node with {self._cpus} free processor{'' if self._cpus == 1 else 's'}")
            while not is_done:
                lines, is_done, outcome = self._ray.get(answer)
                for line in lines:
                    say(line)
                answer = None if is_done else run.read.remote()
            return None if outcome is None else self._take(outcome)
        except self._ray.exceptions.RayTaskError as error:
            if self._is_ending:
                return None
            raise (NodeError if isinstance(error.cause, NodeError) else TrainingError)(str(error.cause)) from error
        except self._ray.exceptions.RayActorError as error:
            if self._is_ending:
                return None
            # What keeps one actor from beginning, such as a package that a node lacks, keeps every one.
            kind = NodeError if error.actor_init_failed else LostRunError
            raise kind(f"Ray has given up seed {request.config.seed}: {name_death(error)}") from error
        finally:
            with self._lock:
                self._runs.remove(run)
                self._lock.notify_all()
                if not self._is_ending:
                    self._ray.kill(run)

    def interrupt(self) -> None:
        """Ask every run to end after its step; those that have no node, or lost theirs, end at once."""
        with self._lock:
            self._is_ending = True
            asked = {run.interrupt.remote(): run for run in self._runs}
        if asked:
            for answer in self._ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)[1]:
                self._ray.kill(asked[answer])

    def close(self) -> None:
        """Kill what is left, and leave Ray."""
        with self._lock:
            self._is_ending = True
            for run in self._runs:
                self._ray.kill(run)
            # Ray ends the process in which a thread uses it after the end.
            self._lock.wait_for(lambda: not self._runs, timeout=ANSWER_S)
        self._ray.shutdown()
        self._mark.close()

    def _take(self, text: str) -> Outcome:
        outcome = Outcome.model_validate_json(text)
        if outcome.result is not None:
            try:
                fetch_run(outcome.recipe, outcome.result.run_id)
            except StorageError as error:
                print(f"{outcome.recipe} is complete; the same command fetches it later: {error}", flush=True)
        return outcome

    def _start(self, request: RunRequest) -> Any:  # noqa: ANN401 - a handle of Ray's
        has_gpu = request.config.device != "cpu"
        options = {
            "num_cpus": self._cpus,
            "num_gpus": self._gpus if has_gpu else 0,
            "max_restarts": RESTARTS,
            "max_task_retries": -1,  # as long as there is an actor
            "max_concurrency": 2,  # `read` and `interrupt`
        }
        run = self._ray.remote(RayRun).options(**options)
        return run.remote(request.model_dump_json(), self._mark.name, self._environment, hash_code())
