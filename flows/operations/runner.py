"""A run as a request, and what trains it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from flows.printing.summaries import Outcome
from model_code.training.run_folder import AnyConfig


class TrialRequest(BaseModel):
    """A trial of a sweep.

    Attributes:
        folder: Folder of the sweep.
        number: The trial; whoever asks holds it.
        prune_after: Trials that must be complete before others are ended early; 0 ends none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    number: int
    prune_after: int


class RunRequest(BaseModel):
    """One run of a study or a sweep, as JSON for whoever trains it.

    Attributes:
        config: All settings.
        is_offline: True if the run is recorded in its folder, and not in MLflow.
        parent_run_id: MLflow run above it; None without one.
        own_recipes: Texts of the recipes of one's own that the run needs, for a home that lacks their files.
        data_checksum: Checksum of the images; None for those that the home has.
        trial: The trial that the run is, whose end is then noted in its sweep; None for a run of a study.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: AnyConfig
    is_offline: bool = False
    parent_run_id: str | None = None
    own_recipes: Mapping[str, str] = {}
    data_checksum: str | None = None
    trial: TrialRequest | None = None


class Runner(Protocol):
    """Where runs are trained side by side.

    Attributes:
        at_once: Most runs at the same time.
        is_local: True if they compute on this machine's devices, which the command then holds.
    """

    at_once: int
    is_local: bool

    def describe(self) -> str:
        """Return where and with how much of a machine a run is trained, for people."""

    def train(self, request: RunRequest, say: Callable[[str], None]) -> Outcome | None:
        """Train a run to its end; called in a thread of its own, for at most `at_once` runs at the same time.

        Args:
            request: The run.
            say: Takes each line that it prints.

        Returns:
            The outcome; None for a run that `interrupt` ended.

        Raises:
            NodeError: The node cannot train any run.
            TrainingError: The run ended without an outcome.
        """

    def interrupt(self) -> None:
        """Let every run end after its step, and begin no other."""

    def close(self) -> None:
        """End at once whatever still trains."""
