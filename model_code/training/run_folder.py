"""One folder per run under `checkpoints/`: which run it is, who works in it now, and whether it is complete.

run.json       the run's id, config and data checksum, written first
result.json    written last; a folder without it was interrupted
journal.jsonl  what an offline run records instead of in MLflow; only such runs have one
diverged       there where the last training ended with a loss that is not finite
run.lock       held (flock) by the process that works in the folder; the kernel frees it when that process dies
"""

import hashlib
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_code.disk import is_locked, take_lock, write_atomically
from model_code.errors import DivergedError, TrainingError, UsageError
from model_code.training.config import TrainingConfig
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.random_features_config import RandomFeaturesConfig
from model_code.training.untrained_config import UntrainedConfig

AnyConfig = Annotated[
    TrainingConfig | SimSiamConfig | UntrainedConfig | RandomFeaturesConfig, Field(discriminator="kind")
]
RUN_FILE, RESULT_FILE, LOCK_FILE = "run.json", "result.json", "run.lock"
STATE_FILE = "state.pt"
DIVERGED_FILE = "diverged"
JOURNAL_FILE = "journal.jsonl"
ATTEMPTS_FOLDER = "attempts"


class RunRecord(BaseModel):
    """What a run folder belongs to.

    Attributes:
        run_id: MLflow run; of an offline run a name of its own.
        data_checksum: Checksum of the packed images.
        config: All settings.
        pretrained_sha256: SHA-256 of the file of pretrained weights; None without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    data_checksum: str
    config: AnyConfig
    pretrained_sha256: str | None = None


class RunResult(BaseModel):
    """What came out of a complete run.

    Attributes:
        run_id: MLflow run.
        kind: `supervised`, `simsiam`, `untrained` or `random_features`.
        recipe: Recipe name.
        profile: `full`, `smoke` or `custom`.
        dataset: Packed data set.
        metrics: Final figures by their name in MLflow, `<split>/<metric>`.
        epochs: Epochs of the whole run; None where nothing is trained in epochs.
        best_epoch: Counted from 1; None the same.
        best_weights: File name in the run's folder; None the same.
        weights_sha256: SHA-256 of that file.
        seconds: Training, validation and test of the process that finished the run, with the epochs and steps finished
            before it resumed the run.
        code_sha256: SHA-256 of the code and libraries that finished the run; None in results of earlier versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    kind: str
    recipe: str
    profile: str
    dataset: str
    metrics: dict[str, float]
    epochs: int | None = None
    best_epoch: int | None = None
    best_weights: str | None = None
    weights_sha256: str | None = None
    seconds: float
    code_sha256: str | None = None


class RunPlace:
    """A run's folder, whether its record can be read or not; `find_run_place` finds one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def is_offline(self) -> bool:
        """Whether the run is recorded in this folder, and not in MLflow."""
        return (self.path / JOURNAL_FILE).exists()

    @contextmanager
    def lock(self, *, is_shared: bool = False) -> Iterator[None]:
        """Hold the folder for this process; shared with others that only read its weights.

        Raises:
            BusyError: Another process works in it.
        """
        busy = f"run {self.path.name} is used by another command; wait for it"
        with take_lock(self.path / LOCK_FILE, busy, is_shared=is_shared):
            yield

    @property
    def is_busy(self) -> bool:
        """Whether a process works in the folder at this moment."""
        return is_locked(self.path / LOCK_FILE)


class RunFolder(RunPlace):
    """A run's folder; make one with `create_run_folder` or find one with `open_run_folder`."""

    def __init__(self, path: Path, record: RunRecord, begun_s: float) -> None:
        super().__init__(path)
        self.record = record
        self.begun_s = begun_s

    @property
    def result(self) -> RunResult | None:
        """The result, or None while the run is not complete; TrainingError when the file is damaged."""
        try:
            return RunResult.model_validate_json((self.path / RESULT_FILE).read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise TrainingError(f"{self.path / RESULT_FILE} is damaged; remove it and repeat the command") from error

    @property
    def has_diverged(self) -> bool:
        """True if the last training in the folder ended with a loss that is not finite."""
        return (self.path / DIVERGED_FILE).exists()

    @property
    def state(self) -> str:
        """State of a run without a result: `diverged` or `interrupted`."""
        return "diverged" if self.has_diverged else "interrupted"

    @contextmanager
    def noting_divergence(self) -> Iterator[None]:
        """Mark the run if the block ends with a loss that is not finite; an older mark is removed."""
        (self.path / DIVERGED_FILE).unlink(missing_ok=True)
        try:
            yield
        except DivergedError:
            (self.path / DIVERGED_FILE).touch()
            raise

    def complete(self, result: RunResult) -> None:
        """Mark the run as complete; the state that only an interrupted run needs is removed."""
        write_atomically(self.path / RESULT_FILE, result.model_dump_json(indent=2).encode())
        (self.path / STATE_FILE).unlink(missing_ok=True)


@contextmanager
def making_run(checkpoints_dir: Path, record: RunRecord) -> Iterator[str]:
    """Yield a name for the making of a new run: the same again if a process died while it made this one.

    The run is made in two places, here and in MLflow; by the name, which MLflow's run carries as a tag, the second try
    finds what the first one made.
    """
    file = checkpoints_dir / ATTEMPTS_FOLDER / hashlib.sha256(record.model_dump_json().encode()).hexdigest()
    if not file.exists():
        write_atomically(file, uuid.uuid4().hex.encode())
    yield file.read_text(encoding="utf-8")
    file.unlink()


def create_run_folder(checkpoints_dir: Path, record: RunRecord) -> RunFolder:
    """Make the folder of a new run."""
    path = checkpoints_dir / record.run_id
    write_atomically(path / RUN_FILE, record.model_dump_json(indent=2).encode())
    return _read_run(path)


def open_run_folder(checkpoints_dir: Path, run_id: str) -> RunFolder:
    """Open the folder of an existing run.

    Raises:
        TrainingError: There is none, or its record is damaged.
    """
    path = find_run_place(checkpoints_dir, run_id).path
    try:
        return _read_run(path)
    except FileNotFoundError as error:  # removed at this moment
        raise _unknown(checkpoints_dir, run_id) from error
    except ValidationError as error:
        raise TrainingError(
            f"{path / RUN_FILE} is damaged or was written by another version; remove the run and train again: "
            f"`darkroom runs remove {run_id}`, `darkroom train RECIPE`"
        ) from error


def find_run_place(checkpoints_dir: Path, run_id: str) -> RunPlace:
    """Find the folder of an existing run, also of one whose record is damaged.

    Raises:
        TrainingError: There is none.
    """
    # A path leads to another home perhaps.
    if Path(run_id).name != run_id or not (checkpoints_dir / run_id / RUN_FILE).exists():
        raise _unknown(checkpoints_dir, run_id)
    return RunPlace(checkpoints_dir / run_id)


def _unknown(checkpoints_dir: Path, run_id: str) -> TrainingError:
    return TrainingError(
        f"no run {run_id!r} in {checkpoints_dir}; give its id or at least the first 8 digits of it, as `darkroom runs "
        "list` shows them"
    )


def is_run_id(text: str) -> bool:
    """Whether a text is a run id, or at least the first 8 digits of one, as tables print it."""
    return re.fullmatch(r"[0-9a-f]{8,32}", text) is not None


def resolve_run_id(checkpoints_dir: Path, given: str) -> str:
    """Return the run id that begins with `given`; `given` itself where it is whole or no run begins with it.

    Raises:
        UsageError: Several runs begin with it.
    """
    found = (
        sorted(file.parent.name for file in checkpoints_dir.glob(f"{given}*/{RUN_FILE}")) if is_run_id(given) else []
    )
    if len(found) > 1 and given not in found:
        raise UsageError(f"run id {given!r} matches {len(found)} runs: {', '.join(found)}; give more digits")
    return found[0] if len(found) == 1 else given


def find_interrupted(
    checkpoints_dir: Path, wanted: RunRecord, *, is_offline: bool = False, is_busy: bool = False
) -> RunFolder | None:
    """Return the newest incomplete run like `wanted` (its run id apart) that no process trains, or one does; or None.

    An offline run is resumed offline, one in MLflow with MLflow.
    """
    for folder in list_interrupted(checkpoints_dir):
        if is_like(folder.record, wanted) and folder.is_offline == is_offline and folder.is_busy == is_busy:
            return folder
    return None


def find_finished(
    checkpoints_dir: Path,
    wanted: RunRecord,
    code_sha256: str,
    is_held: Callable[[str], bool] = lambda _: True,
    *,
    is_offline: bool = False,
) -> RunResult | None:
    """Return the result of the newest complete run like `wanted` (its run id apart) by the same code, or None.

    `is_held` takes the id of such a run and returns False to pass it over.

    An offline run counts only offline: MLflow, and so report and release, do not know it before it is synced.
    """
    for folder in list_finished(checkpoints_dir):
        if not is_like(folder.record, wanted) or folder.is_offline > is_offline:
            continue
        try:
            result = folder.result
        except TrainingError:
            continue
        if result is not None and result.code_sha256 == code_sha256 and is_held(result.run_id):
            return result
    return None


def list_finished(checkpoints_dir: Path) -> Iterator[RunFolder]:
    """Yield the complete runs, the newest first; not those whose record is damaged or of another version."""
    return _list_runs(checkpoints_dir, is_complete=True)


def list_interrupted(checkpoints_dir: Path) -> Iterator[RunFolder]:
    """Yield the runs without a result, those that are worked on too, the newest first; not those of other versions."""
    return _list_runs(checkpoints_dir, is_complete=False)


def list_damaged(checkpoints_dir: Path) -> list[str]:
    """Return the ids of the runs whose record is damaged or of another version, sorted."""
    damaged = []
    for file in sorted(checkpoints_dir.glob(f"[!.]*/{RUN_FILE}")):
        try:
            _read_run(file.parent)
        except ValidationError:
            damaged.append(file.parent.name)
        except FileNotFoundError:  # removed at this moment
            continue
    return damaged


def is_like(record: RunRecord, wanted: RunRecord) -> bool:
    """Whether two runs are the same, whatever their run ids."""
    return record.model_copy(update={"run_id": wanted.run_id}) == wanted


def _list_runs(checkpoints_dir: Path, is_complete: bool) -> Iterator[RunFolder]:
    found = []
    for file in checkpoints_dir.glob(f"[!.]*/{RUN_FILE}"):
        if (file.parent / RESULT_FILE).exists() == is_complete:
            with suppress(FileNotFoundError, ValidationError):  # removed at this moment, or damaged
                found.append(_read_run(file.parent))
    yield from sorted(found, key=lambda folder: folder.begun_s, reverse=True)


def _read_run(path: Path) -> RunFolder:
    file = path / RUN_FILE
    return RunFolder(path, RunRecord.model_validate_json(file.read_bytes()), file.stat().st_mtime)
