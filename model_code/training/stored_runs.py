"""Folders of runs in DARKROOM_STORAGE: what one machine trained, another one resumes or keeps.

    runs/<recipe>/<key>-<run id>/manifest.json       owner of the run, and its files
    runs/<recipe>/<key>-<run id>/<name>              a file
    runs/<recipe>/<key>.attempt                      name for the making of a new run (`run_folder.making_run`)

The key stands for everything that makes runs the same. Stored files are never changed: replacing manifest.json is the
moment at which a newer state counts, and a process killed at any time leaves one state or the next, whole.

The owner is the process that trains the run, or did last. It counts beats in manifest.json while it lives; when they
stop, another process may become owner, and the one before ends its training if it should still live.
"""

import hashlib
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from model_code.data.progress import show_progress
from model_code.disk import hold_lock, write_atomically, writing_to
from model_code.errors import BusyError, LostRunError, StorageError
from model_code.storage import MANIFEST_FILE, PlainPath, Storage, StoredFile
from model_code.training.interruption import stop_after_step
from model_code.training.run_folder import (
    RESULT_FILE,
    RUN_FILE,
    STATE_FILE,
    RunFolder,
    RunPlace,
    RunRecord,
    list_finished,
)

FIRST_WAIT_S, SECONDS_BETWEEN_BEATS, DEAD_AFTER_S = 1.0, 5.0, 20.0
SECONDS_BETWEEN_LINES = 60.0
LONGEST_SHARE = 0.1  # of the time is spent on storing states
# How long the last state of a training is offered to a storage that does not answer.
PATIENCE_S, SECONDS_BETWEEN_TRIES = 600.0, 5.0
# In a run's folder: the owner that trained it here; which state of it was fetched.
OWNER_FILE, FETCHED_FILE = ".owner", ".fetched"
_FOLDER, _FETCHED, _STORING, _REMOVED = "runs", ".fetched-", ".storing-", ".removed-"
_TRIES = 5
_REPLACED = (".safetensors", ".pt")  # as a whole; other files grow, or are small
_Version = tuple[int, int, int]
_PLAIN_PATH = TypeAdapter(PlainPath)


class _Manifest(BaseModel):
    """Owner and files of a run.

    Attributes:
        owner: A process.
        is_held: True while it trains.
        beat: Rises while it lives.
        files: The files of the run's folder by their paths in it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    is_held: bool
    beat: int
    files: Mapping[PlainPath, StoredFile]

    @property
    def is_complete(self) -> bool:
        return RESULT_FILE in self.files

    @property
    def state(self) -> str:
        """What is another one as soon as a file is."""
        return hashlib.sha256(" ".join(sorted(self.names)).encode()).hexdigest()

    @property
    def names(self) -> set[str]:
        return {file.stored_as for file in self.files.values()}


class StoredRuns:
    """The runs in a storage.

    Args:
        storage: Where they are.
        checkpoints_dir: Folder of this machine's runs.
    """

    def __init__(self, storage: Storage, checkpoints_dir: Path) -> None:
        self._storage, self._checkpoints_dir = storage, checkpoints_dir

    def fetch(self, recipe: str, run_id: str) -> None:
        """Copy the runs of a recipe here whose ids begin with `run_id`; raises what `fetch_complete` does."""
        for place, found in self._list(recipe):
            if found.startswith(run_id) and not _is_trained(self._storage, place, self._checkpoints_dir / found):
                self._fetch(place, found)

    def fetch_complete(self, recipe: str) -> None:
        """Copy the complete runs of a recipe here.

        Raises:
            StorageError: The storage does not answer, or a file there is not what was stored.
            DiskFullError: This machine has no room for a run.
        """
        for place, run_id in self._list(recipe):
            if (manifest := _read(self._storage, place)) is not None and manifest.is_complete:
                self._fetch(place, run_id)

    def fetch_like(self, record: RunRecord, *, is_complete: bool) -> None:
        """Copy the runs that are like `record`, whatever their run ids, here: complete ones, or interrupted ones.

        A run that another machine trains at this moment is left out.

        Raises:
            StorageError: The storage does not answer, or a file there is not what was stored.
            DiskFullError: This machine has no room for a run.
        """
        for place, run_id in self._list(record.config.recipe, _name_key(record)):
            manifest = _read(self._storage, place)
            if manifest is None or manifest.is_complete != is_complete:
                continue
            if is_complete or not _is_trained(self._storage, place, self._checkpoints_dir / run_id):
                self._fetch(place, run_id)

    def wait_for_like(self, record: RunRecord) -> bool:
        """Wait while another machine trains a run like `record`; return whether one did."""
        has_waited = False
        for place, run_id in self._list(record.config.recipe, _name_key(record)):
            next_line_s = 0.0
            while _is_trained(self._storage, place, self._checkpoints_dir / run_id):
                has_waited = True
                if time.monotonic() >= next_line_s:
                    print(f"another machine trains run {run_id}; waiting for it", flush=True)
                    next_line_s = time.monotonic() + SECONDS_BETWEEN_LINES
                time.sleep(SECONDS_BETWEEN_BEATS)
        return has_waited

    def store_complete(self, is_wanted: Callable[[RunRecord], bool]) -> None:
        """Store the complete runs of this machine that are wanted and that the storage does not have.

        Raises:
            StorageError: The storage does not answer.
        """
        for folder in list_finished(self._checkpoints_dir):
            if is_wanted(folder.record):
                manifest = _read(self._storage, _name_place(folder.record))
                if manifest is None or not (manifest.is_complete or manifest.is_held):
                    with suppress(BusyError), folder.lock(), RunUploader(self._storage, folder):
                        print(f"storing run {folder.path.name} in {self._storage.address}", flush=True)

    def claim_attempt(self, record: RunRecord, own: str) -> str:
        """Return the name for the making of a new run that a process took which then died, else `own`."""
        name = _name_attempt(record)
        found = self._storage.read(name)
        if found is None:
            self._storage.write(name, own.encode())
        return own if found is None else found.decode()

    def remove(self, record: RunRecord) -> None:
        """Remove a run from the storage."""
        self._storage.remove(f"{_name_place(record)}/{MANIFEST_FILE}")
        self._storage.remove(_name_place(record))

    def _list(self, recipe: str, key: str = "") -> Iterator[tuple[str, str]]:
        """Yield place and id of each run of a recipe."""
        for name in self._storage.list_folders(f"{_FOLDER}/{recipe}"):
            if name.startswith(key) and (run_id := name.partition("-")[2]):
                yield f"{_FOLDER}/{recipe}/{name}", run_id

    def _fetch(self, place: str, run_id: str) -> None:
        """Copy a run here, unless this machine trains it, trained it last, or has this state or its end."""
        path = self._checkpoints_dir / run_id
        purpose = f"fetching run {run_id[:8]} from {self._storage.address}"
        with (
            hold_lock(self._checkpoints_dir / f"{_FETCHED}lock", purpose),
            writing_to(self._checkpoints_dir, 0, purpose),
            suppress(BusyError),  # another process of this machine trains it
        ):
            self._sweep()
            for _ in range(_TRIES):
                manifest = _read(self._storage, place)
                if (
                    manifest is None
                    or (path / RESULT_FILE).exists()
                    or _read_mark(path / OWNER_FILE) == manifest.owner
                    or _read_mark(path / FETCHED_FILE) == manifest.state
                ):
                    return
                scratch = path.with_name(f"{_FETCHED}{run_id}")
                shutil.rmtree(scratch, ignore_errors=True)
                size_bytes = sum(file.size_bytes for file in manifest.files.values())
                try:
                    with writing_to(scratch, size_bytes, purpose), show_progress(purpose, size_bytes, "B") as advance:
                        self._storage.fetch(place, manifest.files, scratch, advance)
                except StorageError:
                    if (now := _read(self._storage, place)) is not None and now.state == manifest.state:
                        raise
                    continue  # its owner stored another state meanwhile
                write_atomically(scratch / FETCHED_FILE, manifest.state.encode())
                _put(scratch, path)
                return
            raise StorageError(f"{self._storage.address}: run {run_id} changes while it is read; try again later")

    def _sweep(self) -> None:
        """Remove what killed processes left."""
        for scratch in self._checkpoints_dir.glob(f"{_FETCHED}*/"):
            shutil.rmtree(scratch)
        for scratch in self._checkpoints_dir.glob(f"{_STORING}*/"):
            if not RunPlace(scratch.with_name(scratch.name.removeprefix(_STORING))).is_busy:
                shutil.rmtree(scratch, ignore_errors=True)


class RunUploader:
    """Stores a run's folder while the block trains in it, and at its end.

    A storage that does not answer meanwhile stops nothing. If another process becomes owner of the run, the training
    ends after its step.

    Args:
        storage: Where to.
        folder: The run's folder, held by this process.

    Raises:
        BusyError: Another machine trains the run.
        LostRunError: Another process has become owner of the run.
        StorageError: The storage does not answer at the beginning, or for ten minutes at the end.
    """

    def __init__(self, storage: Storage, folder: RunFolder) -> None:
        self._storage, self._folder = storage, folder
        self._place = _name_place(folder.record)
        self._manifest = _Manifest(owner=uuid.uuid4().hex, is_held=True, beat=0, files={})
        self._sent: dict[str, tuple[_Version, StoredFile]] = {}
        self._known: set[str] = set()  # names of stored files, needed or not
        self._scratch = folder.path.with_name(f"{_STORING}{folder.path.name}")
        self._lost: LostRunError | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._store_states, name="storage", daemon=True)

    def __enter__(self) -> None:
        if _is_trained(self._storage, self._place, self._folder.path):
            raise BusyError(
                f"another machine trains run {self._folder.path.name}; repeat the command when it has ended"
            )
        if (found := _read(self._storage, self._place)) is not None:
            self._manifest = self._manifest.model_copy(update={"files": found.files})
        self._known = set(self._storage.list_files(self._place)) - {MANIFEST_FILE}
        self._commit(self._manifest.files)
        write_atomically(self._folder.path / OWNER_FILE, self._manifest.owner.encode())
        self._store()
        self._storage.remove(_name_attempt(self._folder.record))
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        end_s, is_told = time.monotonic() + (PATIENCE_S if error is None else 0), False
        while self._lost is None:
            try:
                self._store()
                self._commit(self._manifest.files, is_held=False)
            except LostRunError as lost:
                self._lost = lost
            except (StorageError, OSError) as unanswered:
                unstored = f"the last state of run {self._folder.path.name} is in {self._folder.path} only"
                if error is None and time.monotonic() >= end_s:
                    raise StorageError(f"{unstored}; the next run like it stores it: {unanswered}") from unanswered
                if not is_told:
                    print(f"{unstored}{'' if error else ', waiting for the storage'}: {unanswered}", flush=True)
                if error is not None:
                    return
                is_told = True
                time.sleep(SECONDS_BETWEEN_TRIES)
            else:
                with suppress(StorageError):
                    self._remove_unused()
                return
        raise self._lost from error

    def _store_states(self) -> None:
        stored, next_s, wait_s, was_answered = self._read_progress(), 0.0, FIRST_WAIT_S, True
        while not self._is_over.wait(wait_s):
            start_s, progress = time.monotonic(), self._read_progress()
            try:
                self._remove_unused()
                if progress != stored and start_s >= next_s:
                    self._store()
                    stored, next_s = progress, start_s + (time.monotonic() - start_s) / LONGEST_SHARE
                else:
                    self._beat()
                was_answered = True
            except LostRunError as lost:
                self._lost = lost
                stop_after_step()
                return
            except (StorageError, OSError) as error:
                if was_answered:
                    print(f"the training goes on without its storage: {error}", flush=True)
                was_answered = False
            wait_s = min(2 * wait_s, SECONDS_BETWEEN_BEATS)

    def _read_progress(self) -> tuple[_Version, _Version]:
        return _read_version(self._folder.path / STATE_FILE), _read_version(self._folder.path / RESULT_FILE)

    def _store(self) -> None:
        """Upload what has changed, then let it count.

        Raises:
            LostRunError: Another process has become owner.
            StorageError: The storage does not answer.
        """
        self._check_owner()
        with writing_to(self._folder.path, 0, f"storing run {self._folder.path.name[:8]}"):
            try:
                versions, copies = self._take_state()
                for name, copy in copies.items():
                    if name not in self._sent or self._sent[name][0] != versions[name]:
                        self._sent[name] = versions[name], self._storage.store(copy, self._place, self._advance)
                        self._known.add(self._sent[name][1].stored_as)
            finally:
                shutil.rmtree(self._scratch, ignore_errors=True)
        self._sent = {name: sent for name, sent in self._sent.items() if name in versions}
        self._check_owner()
        self._commit({name: stored for name, (_, stored) in self._sent.items()})

    def _advance(self, _size_bytes: int) -> None:
        if time.monotonic() - self._beaten_s >= SECONDS_BETWEEN_BEATS:
            self._beat()

    def _beat(self) -> None:
        self._check_owner()
        self._commit(self._manifest.files)

    def _commit(self, files: Mapping[str, StoredFile], *, is_held: bool = True) -> None:
        manifest = self._manifest.model_copy(
            update={"files": files, "is_held": is_held, "beat": self._manifest.beat + 1}
        )
        _write(self._storage, self._place, manifest)
        self._manifest, self._beaten_s = manifest, time.monotonic()

    def _check_owner(self) -> _Manifest:
        try:
            now = self._storage.read_json(f"{self._place}/{MANIFEST_FILE}", _Manifest)
        except ValidationError as error:
            raise StorageError(f"{self._storage.address}/{self._place}/{MANIFEST_FILE} is damaged") from error
        if now is None or now.owner != self._manifest.owner:
            what = "was removed from the storage" if now is None else "is trained by another machine now"
            raise LostRunError(f"run {self._folder.path.name} {what}; this training of it ends")
        return now

    def _remove_unused(self) -> None:
        """Remove stored files that neither the manifest names nor the next one will.

        Not right after a commit: a process that is no owner any more may commit once more if it looked for the owner
        before, and that shows at the next look.
        """
        # They differ after a commit whose answer did not come.
        if self._check_owner().files == self._manifest.files:
            used = self._manifest.names | {stored.stored_as for _, stored in self._sent.values()}
            for name in sorted(self._known - used):
                self._storage.remove(f"{self._place}/{name}")
                self._known.discard(name)

    def _take_state(self) -> tuple[dict[str, _Version], dict[str, Path]]:
        """Return the files of one state by their paths in the folder: versions, and copies of those that are new."""
        root = self._folder.path
        while True:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch.mkdir()
            state = _read_version(root / STATE_FILE)
            versions: dict[str, _Version] = {}
            copies: dict[str, Path] = {}
            with suppress(FileNotFoundError):  # replaced by the next state
                for file in sorted(root.rglob("*")):
                    name = file.relative_to(root).as_posix()
                    if not _is_plain(name) or file.is_symlink() or not file.is_file() or file.suffix == ".lock":
                        continue
                    versions[name] = _read_version(file)
                    if name not in self._sent or self._sent[name][0] != versions[name]:
                        copies[name] = self._scratch / str(len(copies))
                        _copy(file, copies[name])
                if _read_version(root / STATE_FILE) == state:
                    return versions, copies


def _read(storage: Storage, place: str) -> _Manifest | None:
    """Return the manifest of a run of which a state is stored; one that is damaged is told, and left out."""
    try:
        manifest = storage.read_json(f"{place}/{MANIFEST_FILE}", _Manifest)
    except ValidationError:
        print(f"{storage.address}/{place} is damaged or of another version, and left out", flush=True)
        return None
    return manifest if manifest is not None and RUN_FILE in manifest.files else None


def _is_trained(storage: Storage, place: str, path: Path) -> bool:
    """Whether another machine trains a run; if its beats have stopped, it is noted that none does.

    Args:
        storage: Where the run is.
        place: Its folder there.
        path: Its folder here, there or not.
    """
    manifest, end_s = _read(storage, place), time.monotonic() + DEAD_AFTER_S
    if manifest is None or not manifest.is_held or _read_mark(path / OWNER_FILE) == manifest.owner:
        return False
    print(f"another machine began run {path.name}; looking for {DEAD_AFTER_S:.0f} s whether it lives", flush=True)
    while time.monotonic() < end_s:
        time.sleep(DEAD_AFTER_S / 20)
        now = _read(storage, place)
        if now is None or not now.is_held:
            return False
        if now.beat != manifest.beat or now.owner != manifest.owner:
            return True
    _write(storage, place, manifest.model_copy(update={"is_held": False}))
    return False


def _write(storage: Storage, place: str, manifest: _Manifest) -> None:
    storage.write(f"{place}/{MANIFEST_FILE}", manifest.model_dump_json(indent=1).encode())


def _put(scratch: Path, path: Path) -> None:
    """Let a fetched folder take the place of one that no process uses; BusyError where one does."""
    if not path.exists():
        scratch.rename(path)
        return
    older = path.with_name(f"{_REMOVED}{uuid.uuid4().hex}")
    with RunPlace(path).lock():
        path.rename(older)
        scratch.rename(path)
    shutil.rmtree(older)


def _copy(file: Path, copy: Path) -> None:
    """Keep the content of a file as it is now."""
    if file.suffix in _REPLACED:
        try:
            copy.hardlink_to(file)
        except FileNotFoundError:
            raise
        except OSError:  # a disk without hard links
            shutil.copyfile(file, copy)
    else:
        shutil.copyfile(file, copy)


def _is_plain(name: str) -> bool:
    try:
        _PLAIN_PATH.validate_python(name)
    except ValidationError:
        return False
    return True


def _name_key(record: RunRecord) -> str:
    """Return what all runs like a record have in common."""
    return hashlib.sha256(record.model_copy(update={"run_id": ""}).model_dump_json().encode()).hexdigest()[:16]


def is_like(record: RunRecord, wanted: RunRecord) -> bool:
    """Whether two runs are the same but for their run ids."""
    return _name_key(record) == _name_key(wanted)


def _name_place(record: RunRecord) -> str:
    return f"{_FOLDER}/{record.config.recipe}/{_name_key(record)}-{record.run_id}"


def _name_attempt(record: RunRecord) -> str:
    return f"{_FOLDER}/{record.config.recipe}/{_name_key(record)}.attempt"


def _read_mark(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.exists() else None


def _read_version(file: Path) -> _Version:
    """Return what changes when a file is replaced or written to; zeros where it is not there."""
    with suppress(FileNotFoundError):
        found = file.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return 0, 0, 0
