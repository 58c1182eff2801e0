"""Runs of a study as processes of this machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import Lock

from pydantic import ValidationError

from flows.operations.runner import RunRequest
from flows.printing.summaries import Outcome
from model_code.errors import LostRunError, TrainingError
from serving.bundle.processors import count_cpus

THREADS = "OMP_NUM_THREADS"


class RunProcesses:
    """Trains each run in a new interpreter, never a fork: CUDA does not survive one.

    A process ends with this one, however this one ends. Its standard error has its lines, its standard output the
    outcome.

    Args:
        at_once: Most runs at the same time, which share the processors; OMP_NUM_THREADS of the environment goes first.
    """

    is_local = True

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self._threads = os.environ.get(THREADS) or str(max(1, count_cpus() // at_once))
        self._processes: set[subprocess.Popen[str]] = set()
        self._is_ending = False
        self._lock = Lock()  # none begins once all are told to end

    def describe(self) -> str:
        """Return how many threads a run has."""
        return f"each in a process of its own with {self._threads} thread{'' if self._threads == '1' else 's'}"

    def train(self, request: RunRequest, say: Callable[[str], None]) -> Outcome | None:
        """Train a run in a process of its own; see `Runner`.

        Raises:
            TrainingError: The process ended without an outcome.
        """
        with self._lock:
            if self._is_ending:
                return None
            # This thread outlives the process: the kernel ends it with the thread that started it.
            process = self._start(request)
            self._processes.add(process)
        try:
            return self._follow(process, request, say)
        finally:
            with self._lock:
                self._processes.remove(process)

    def interrupt(self) -> None:
        """Send every process SIGTERM: a shell's background commands, and so their children, may ignore Ctrl-C's."""
        self._end(signal.SIGTERM)

    def close(self) -> None:
        """Kill what is left."""
        self._end(signal.SIGKILL)

    def _end(self, signum: int) -> None:
        with self._lock:
            self._is_ending = True
            for process in self._processes:
                process.send_signal(signum)

    def _start(self, request: RunRequest) -> subprocess.Popen[str]:
        config = request.config
        return subprocess.Popen(
            # -P as in orchestration.py; the last word is for people who look at the machine's processes.
            [
                *(sys.executable, "-P", "-m", "flows.operations.run_process"),
                *(str(os.getpid()), f"{config.recipe}-seed-{config.seed}"),
            ],
            env=os.environ | {THREADS: self._threads},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            # Ctrl-C in a terminal is for the command, which hands it on once.
            start_new_session=True,
        )

    def _follow(
        self, process: subprocess.Popen[str], request: RunRequest, say: Callable[[str], None]
    ) -> Outcome | None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with process:
            with suppress(BrokenPipeError):  # it has ended, and its status says why
                process.stdin.write(request.model_dump_json())
                process.stdin.close()
            for line in process.stderr:
                say(line)
            answer = process.stdout.read()
        with suppress(ValidationError):
            return Outcome.model_validate_json(answer.rpartition("\n")[2])  # what a library printed stands before it
        if self._is_ending:
            return None
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            memory = ", perhaps because memory is full" if name == "SIGKILL" else ""
            raise LostRunError(f"the process of seed {request.config.seed} was ended by {name}{memory}")
        raise TrainingError(
            f"the process of seed {request.config.seed} ended with status {process.returncode}; its lines say why"
        )
