"""One run of a study or a sweep as a process that ends with its parent: request on input, outcome on output."""

import os
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from flows.entry import INTERRUPTED
from serving.decoding.sandbox import end_with_parent

if TYPE_CHECKING:
    from flows.experiments.inputs import RunInputs
    from flows.operations.runner import RunRequest
    from flows.printing.summaries import Outcome
    from model_code.training.run_folder import RunResult


def main() -> None:
    """Train the run that is asked for, until the parent ends, however it ends."""
    end_with_parent()
    if os.getppid() != int(sys.argv[1]):
        return
    text = sys.stdin.buffer.read()
    from flows.printing.narration import narrating

    with narrating("json"):
        from flows.operations.runner import RunRequest

        request = RunRequest.model_validate_json(text)
        # Until here nothing has begun that a signal could interrupt.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            outcome = _train(request)
        except KeyboardInterrupt:
            sys.stderr.flush()
            os._exit(INTERRUPTED)
    sys.stdout.buffer.write(outcome.model_dump_json().encode())


def _train(request: "RunRequest") -> "Outcome":
    if request.trial is not None:
        from flows.operations.trial import train_requested

        return train_requested(request, _share_device)
    from flows.experiments.inputs import find_kept
    from flows.experiments.training import train, train_one, wait_for_run
    from model_code.recipes.catalog import take_own_files
    from model_code.settings import load_settings
    from model_code.tracking.journal import JournalTracking
    from model_code.tracking.run_tracker import Tracking

    settings = load_settings()
    take_own_files(request.own_recipes)
    tracking: Tracking
    if request.is_offline:
        tracking = JournalTracking(settings.checkpoints_dir)
    else:
        from model_code.tracking.mlflow_log import MlflowTracking

        tracking = MlflowTracking(settings, request.parent_run_id)

    def train_here(inputs: "RunInputs") -> "RunResult":
        kept = find_kept(inputs) if wait_for_run(inputs) else None
        return kept or train(inputs, tracking, _share_device)

    return train_one(request.config, train_here, is_offline=request.is_offline, data_checksum=request.data_checksum)


def _share_device(_locks_dir: Path, _device: str) -> AbstractContextManager[None]:
    """Return at once: the parent holds the device for its runs."""
    return nullcontext()


if __name__ == "__main__":
    main()
