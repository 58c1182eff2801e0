"""A run's checkpoints on their way to the disk: from a thread, at most one in a few seconds.

A kill loses what was trained since the last one written, never more than `SECONDS_BETWEEN_CHECKPOINTS` and an epoch.
"""

import copy
import math
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model_code.training import checkpoints

SECONDS_BETWEEN_CHECKPOINTS = 10.0


@dataclass(frozen=True)
class Snapshot:
    """A finished epoch, in memory that training does not change.

    Attributes:
        state: Everything that the next step depends on.
        last: Weights after the epoch, by name.
        best: Weights of the best epoch, by name; None where they are on disk since before this process.
    """

    state: checkpoints.TrainingState
    last: Mapping[str, Tensor]
    best: Mapping[str, Tensor] | None


class CheckpointWriter:
    """Writes snapshots in the order weights, state, removal of old weights: a kill leaves files that belong together.

    Args:
        run_dir: Folder of the run.
        device: Device of the run's tensors.
        best_epoch: Epoch whose weights are on disk as the best; 0 for none.
        interval_s: Least time between the starts of two writes, seconds; None takes the usual one.
    """

    def __init__(
        self,
        run_dir: Path,
        device: torch.device,
        best_epoch: int = 0,
        interval_s: float | None = None,
    ) -> None:
        self._run_dir, self._best_epoch = run_dir, best_epoch
        self._interval_s = SECONDS_BETWEEN_CHECKPOINTS if interval_s is None else interval_s
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._waiting: Snapshot | None = None
        self._start_s = -math.inf

    def keep(self, snapshot: Snapshot) -> None:
        """Write a snapshot now, or later where the last write is not over or not long ago; only the newest waits.

        Raises:
            DiskFullError: An earlier snapshot could not be written; the one before stays.
        """
        self._waiting = snapshot
        self.write_due()

    def write_due(self) -> None:
        """Begin to write the waiting snapshot, where the last write is over and not recent.

        Raises:
            DiskFullError: An earlier snapshot could not be written; the one before stays.
        """
        is_free = self._writing is None or self._writing.done()
        if self._waiting is not None and is_free and time.monotonic() - self._start_s >= self._interval_s:
            self._join()
            self._start_s, snapshot, self._waiting = time.monotonic(), self._waiting, None
            ready = torch.cuda.current_stream().record_event() if self._stream is not None else None
            self._writing = self._thread.submit(self._write, snapshot, ready)

    def write(self, snapshot: Snapshot) -> None:
        """Write a snapshot, whose tensors need not be copies, before this returns.

        Raises:
            DiskFullError: This snapshot or an earlier one could not be written; the one before stays.
        """
        self.flush()
        self._write(snapshot, None)

    def flush(self) -> None:
        """Wait until the newest snapshot is on disk.

        Raises:
            DiskFullError: It could not be written; the one before stays.
        """
        self._join()
        snapshot, self._waiting = self._waiting, None
        if snapshot is not None:
            self._write(snapshot, None)

    def close(self) -> None:
        """Flush and end the thread.

        Raises:
            DiskFullError: The newest snapshot could not be written; the one before stays.
        """
        try:
            self.flush()
        finally:
            self._thread.shutdown()

    def _join(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, snapshot: Snapshot, ready: torch.cuda.Event | None) -> None:
        if self._stream is None or ready is None:
            self._write_files(snapshot)
            return
        # The copies to the host run beside the steps of the next epoch.
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            self._write_files(snapshot)

    def _write_files(self, snapshot: Snapshot) -> None:
        best_epoch = snapshot.state.best_epoch
        if snapshot.best is not None and best_epoch != self._best_epoch:
            checkpoints.save_weights(snapshot.best, checkpoints.best_file(self._run_dir, best_epoch))
            self._best_epoch = best_epoch
        checkpoints.save_weights(snapshot.last, self._run_dir / checkpoints.LAST_FILE)
        checkpoints.save_state(self._run_dir, snapshot.state)
        checkpoints.remove_other_best(self._run_dir, best_epoch)


def copy_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of a state dict, on the device of its tensors."""
    return copy.deepcopy(dict(tensors))
