"""A training run in its own folder, for machines without MLflow: `journal.jsonl`, and `artifacts/` beside it.

The journal is append-only, one entry a line. A process that is killed leaves at most a line that was cut short, which
the next one removes; what it did not record is in the checkpoint, as with MLflow.
"""

import io
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_code.disk import cut_torn_line, write_atomically, writing_to
from model_code.errors import DarkroomError, TrackingError
from model_code.tracking.run_tracker import EVERY_EPOCH, Events, RunLog, RunTracker, list_params, list_tags
from model_code.training.run_config import RunConfig
from model_code.training.run_folder import JOURNAL_FILE, RUN_FILE, RunFolder, RunRecord

ARTIFACTS_FOLDER = "artifacts"


class Entry(BaseModel):
    """One line of a journal.

    Attributes:
        time_ms: Since 1970.
        status: How the run is from then on; None where that does not change.
        params: Settings, as text.
        tags: Each replaces an earlier one of its name.
        step: Epoch of the metrics; 0 for final figures.
        metrics: Values by name, `<split>/<metric>`.
        artifact: Place of a file among the run's artifacts.
        file: Path of that file in the run's folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    time_ms: int
    status: Literal["RUNNING", "FINISHED", "FAILED", "KILLED"] | None = None
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    step: int | None = None
    metrics: dict[str, float] = {}
    artifact: str | None = Field(default=None, pattern=r"^[\w-][\w.-]*(/[\w-][\w.-]*)*$")
    file: str | None = None


def read_journal(folder: Path) -> list[Entry]:
    """Return the entries of a run's journal, in order; none for a journal that was just begun.

    Raises:
        TrackingError: There is no journal, or a line is none of Darkroom's.
    """
    file = folder / JOURNAL_FILE
    try:
        lines = file.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError as error:
        raise TrackingError(f"{folder} has no {JOURNAL_FILE}: only runs of `darkroom train --offline` have") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(Entry.model_validate_json(line))
        except ValidationError as error:
            raise TrackingError(
                f"line {number} of {file} is damaged or of another version ({error.errors()[0]['msg']}); "
                "take the file from the machine that trained, or train again"
            ) from error
    return entries


def is_finished(entries: Sequence[Entry]) -> bool:
    """Return True if a journal has its run's end."""
    return [entry.status for entry in entries if entry.status][-1:] == ["FINISHED"]


class JournalLog(RunLog):
    """Writes a run's journal; `JournalTracking.track` makes one.

    Args:
        folder: The run's folder.
        entries: What the journal holds.
    """

    def __init__(self, folder: Path, entries: Sequence[Entry]) -> None:
        self._folder = folder
        points = [(entry.step, entry.metrics) for entry in entries if entry.step is not None]
        self.epochs = {step for step, metrics in points if EVERY_EPOCH in metrics}
        self.figures = {key: value for step, metrics in points if step == 0 for key, value in metrics.items()}

    def write(self, **given: object) -> None:
        """Append one entry, with the time."""
        entry = Entry.model_validate({"time_ms": int(time.time() * 1000), **given})
        line = entry.model_dump_json(exclude_defaults=True).encode() + b"\n"
        with writing_to(self._folder, len(line), "recording the run"):
            _append(self._folder / JOURNAL_FILE, line, is_durable=entry.status == "FINISHED")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write metrics of one step."""
        self.write(step=step, metrics=metrics)

    def check(self) -> None:
        """Nothing is refused later: what cannot be written fails at once."""

    def set_tag(self, key: str, value: str) -> None:
        """Write a tag."""
        self.write(tags={key: value})

    def log_text(self, text: str, path: str) -> None:
        """Keep a text in the run's folder."""
        self._keep(text.encode(), path)

    def log_figure(self, figure: Figure, path: str) -> None:
        """Keep a figure in the run's folder."""
        image = io.BytesIO()
        figure.savefig(image, format=Path(path).suffix[1:])
        self._keep(image.getvalue(), path)

    def log_file(self, file: Path, path: str) -> None:
        """Name a file of the run's folder; it is not copied."""
        self.write(artifact=path, file=file.relative_to(self._folder).as_posix())

    def open_events(self, run_dir: Path) -> Events:
        """Write none: `darkroom runs sync` makes them from the journal."""
        return Events()

    def _keep(self, content: bytes, path: str) -> None:
        file = self._folder / ARTIFACTS_FOLDER / path
        write_atomically(file, content)
        self.log_file(file, path)


def _append(file: Path, line: bytes, *, is_durable: bool) -> None:
    """Append a whole line or nothing: a full disk takes the beginning of one."""
    with file.open("ab", buffering=0) as stream:
        size = stream.tell()
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[stream.write(rest) :]
            if is_durable:
                os.fsync(stream.fileno())
        except OSError:
            stream.truncate(size)
            raise


class JournalTracking:
    """Run folders, as the place where runs are recorded."""

    is_offline = True

    def __init__(self, checkpoints_dir: Path) -> None:
        self._checkpoints_dir = checkpoints_dir

    def create_run(self, config: RunConfig, attempt: str) -> str:
        """Begin an empty journal and return the run's id: the attempt's name, if it has no run yet."""
        run_id = uuid.uuid4().hex if (self._checkpoints_dir / attempt / RUN_FILE).exists() else attempt
        folder = self._checkpoints_dir / run_id
        with writing_to(folder, 0, "beginning a run"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / JOURNAL_FILE).touch()
        return run_id

    def has_run(self, run_id: str) -> bool:
        """Whether a run has a journal here."""
        return (self._checkpoints_dir / run_id / JOURNAL_FILE).exists()

    def track(self, folder: RunFolder, tags: Mapping[str, str]) -> AbstractContextManager[RunTracker]:
        """Record a run in its folder."""
        return _track(folder.path, folder.record, tags)


@contextmanager
def _track(folder: Path, record: RunRecord, tags: Mapping[str, str]) -> Iterator[RunTracker]:
    cut_torn_line(folder / JOURNAL_FILE)
    log = JournalLog(folder, read_journal(folder))
    log.write(status="RUNNING", params=list_params(record), tags=list_tags(record, tags))
    try:
        yield RunTracker(record, log)
        log.write(status="FINISHED")
    except BaseException as error:
        with suppress(DarkroomError):  # a full disk: what ended the run is told
            log.write(status="KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
