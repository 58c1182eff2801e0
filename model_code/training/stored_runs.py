"""Folders of runs in DARKROOM_STORAGE: what one machine trained, another one resumes or keeps.

    runs/<recipe>/<key>-<run id>/<owner>/manifest.json    names and checksums of the files of a whole state
    runs/<recipe>/<key>-<run id>/<owner>/heartbeat        changes while the owner trains; removed at its end
    runs/<recipe>/<key>-<run id>/<owner>/<name>           a file

The key stands for everything that makes runs the same. An owner is a process that trains the run or did: owners are
numbered, and each writes into its own folder only. Files are stored under new names; replacing manifest.json is the
moment at which a newer state counts. The state of a run is that of its last owner that has stored one. So a process
that is killed, delayed or cut off at any moment leaves a whole state, and none can spoil that of a later owner.
"""

import hashlib
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from model_code.data.progress import show_progress
from model_code.disk import REMOVED_PREFIX, hold_lock, write_atomically, writing_to
from model_code.errors import BusyError, DarkroomError, LostRunError, StorageError
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

SECONDS_BETWEEN_HEARTBEATS, DEAD_AFTER_S = 5.0, 20.0
FIRST_WAIT_S, LONGEST_SHARE = 1.0, 0.1  # at most such a share of the time is spent on storing states
# How long the last state of a training is offered to a storage that does not answer.
PATIENCE_S, SECONDS_BETWEEN_TRIES = 600.0, 5.0
SECONDS_BETWEEN_LINES = 60.0
# In a run's folder: owners whose states it continues; the state that was fetched.
OWNERS_FILE, FETCHED_FILE = ".owners", ".fetched"
HEARTBEAT_FILE = "heartbeat"
_FOLDER, _FETCHED, _STORING = "runs", ".fetched-", ".storing-"
_RUN_ID, _OWNER = r"[0-9a-f]{32}", r"[0-9]{6}-[0-9a-f]{32}"
_TRIES = 5
_PROGRESS = (STATE_FILE, RESULT_FILE)  # change with every state
_REPLACED = (".safetensors", ".pt")  # whole files take their place; others grow, or are small
_Version = tuple[int, int, int]
_PLAIN_PATH = TypeAdapter(PlainPath)


class _Manifest(BaseModel):
    """The files of a state by their paths in the run's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: Mapping[PlainPath, StoredFile]

    @property
    def is_complete(self) -> bool:
        return RESULT_FILE in self.files

    @property
    def names(self) -> set[str]:
        return {file.stored_as for file in self.files.values()}


@dataclass(frozen=True)
class _State:
    """A stored state of a run, and its owner."""

    owner: str
    manifest: _Manifest

    def __str__(self) -> str:
        return f"{self.owner} {hashlib.sha256(' '.join(sorted(self.manifest.names)).encode()).hexdigest()}"


class StoredRuns:
    """The runs in a storage.

    Args:
        storage: Where they are.
        checkpoints_dir: Folder of this machine's runs.
    """

    def __init__(self, storage: Storage, checkpoints_dir: Path) -> None:
        self._storage, self._checkpoints_dir = storage, checkpoints_dir

    def fetch(self, recipe: str, run_id: str) -> None:
        """Copy the runs of a recipe here whose ids begin with `run_id`, unless another machine trains them.

        Raises:
            StorageError: The storage does not answer, or a file there is not what was stored.
            DiskFullError: This machine has no room for a run.
        """
        for place, found in self._list(recipe):
            if found.startswith(run_id) and not self._is_trained(place, found):
                self._fetch(place, found)

    def fetch_complete(self, recipe: str) -> None:
        """Copy the complete runs of a recipe here; raises what `fetch` does."""
        for place, run_id in self._list(recipe):
            if (state := _find_state(self._storage, place)) is not None and state.manifest.is_complete:
                self._fetch(place, run_id)

    def fetch_like(self, record: RunRecord, *, is_offline: bool, is_complete: bool) -> None:
        """Copy runs here that are like `record`, whatever their run ids; raises what `fetch` does.

        Args:
            record: Settings and images.
            is_offline: True for those that are recorded in their folders, and not in MLflow.
            is_complete: True for the complete ones; False for interrupted ones that no other machine trains, and for
                those that this machine has as interrupted.
        """
        for place, run_id in self._list(record.config.recipe, _name_key(record, is_offline)):
            state = _find_state(self._storage, place)
            if state is None:
                continue
            if state.manifest.is_complete:
                is_wanted = is_complete or (self._checkpoints_dir / run_id).exists()
            else:
                is_wanted = not (is_complete or self._is_trained(place, run_id))
            if is_wanted:
                self._fetch(place, run_id)

    def wait_for_like(self, record: RunRecord, *, is_offline: bool) -> bool:
        """Wait while another machine trains a run like `record`; return whether one did."""
        has_waited, next_line_s = False, 0.0
        for place, run_id in self._list(record.config.recipe, _name_key(record, is_offline)):
            while self._is_trained(place, run_id):
                has_waited = True
                if time.monotonic() >= next_line_s:
                    print(f"another machine trains run {run_id}; waiting for it", flush=True)
                    next_line_s = time.monotonic() + SECONDS_BETWEEN_LINES
                time.sleep(SECONDS_BETWEEN_HEARTBEATS)
        return has_waited

    def store_complete(self, is_wanted: Callable[[RunRecord], bool]) -> None:
        """Store the complete runs of this machine that are wanted and that the storage does not have.

        Raises:
            StorageError: The storage does not answer.
        """
        for folder in list_finished(self._checkpoints_dir):
            if not is_wanted(folder.record):
                continue
            place = _name_place(folder.record, folder.is_offline)
            state = _find_state(self._storage, place)
            if (state is not None and state.manifest.is_complete) or self._is_trained(place, folder.path.name):
                continue
            print(f"storing run {folder.path.name} in {self._storage.address}", flush=True)
            uploader = RunUploader(self._storage, folder, is_offline=folder.is_offline, is_training=False)
            with suppress(BusyError, LostRunError), folder.lock(), uploader:  # another process has it
                continue

    def remove(self, record: RunRecord, *, is_offline: bool) -> None:
        """Remove a run from the storage."""
        place = _name_place(record, is_offline)
        for owner in _list_owners(self._storage, place):
            self._storage.remove(f"{place}/{owner}/{MANIFEST_FILE}")
        self._storage.remove(place)

    def _list(self, recipe: str, key: str = "") -> Iterator[tuple[str, str]]:
        """Yield place and id of each run of a recipe."""
        for name in self._storage.list_folders(f"{_FOLDER}/{recipe}"):
            run_id = name.partition("-")[2]
            if name.startswith(key) and re.fullmatch(_RUN_ID, run_id):
                yield f"{_FOLDER}/{recipe}/{name}", run_id

    def _is_trained(self, place: str, run_id: str) -> bool:
        return _is_trained(self._storage, place, self._checkpoints_dir / run_id)

    def _fetch(self, place: str, run_id: str) -> None:
        """Copy a run here, unless this machine trains it, trained it last, or has this state or its end."""
        path = self._checkpoints_dir / run_id
        purpose = f"fetching run {run_id[:8]} from {self._storage.address}"
        with (
            hold_lock(self._checkpoints_dir / f"{_FETCHED}lock", purpose),
            writing_to(self._checkpoints_dir, 0, purpose),
            suppress(BusyError),  # another process of this machine trains it
        ):
            self._remove_leftovers()
            for _ in range(_TRIES):
                state = _find_state(self._storage, place)
                if state is None or (path / RESULT_FILE).exists() or _is_continued(path, state):
                    return
                scratch = path.with_name(f"{_FETCHED}{run_id}")
                size_bytes = sum(file.size_bytes for file in state.manifest.files.values())
                try:
                    with writing_to(scratch, size_bytes, purpose), show_progress(purpose, size_bytes, "B") as advance:
                        self._storage.fetch(f"{place}/{state.owner}", state.manifest.files, scratch, advance)
                except StorageError:
                    if str(_find_state(self._storage, place)) == str(state):
                        raise
                    continue  # another state was stored meanwhile
                write_atomically(scratch / FETCHED_FILE, str(state).encode())
                _put(scratch, path)
                return
            raise StorageError(f"{self._storage.address}: run {run_id} changes while it is read; try again later")

    def _remove_leftovers(self) -> None:
        """Remove what killed processes left."""
        for scratch in self._checkpoints_dir.glob(f"{_FETCHED}*/"):
            shutil.rmtree(scratch)
        for scratch in self._checkpoints_dir.glob(f"{_STORING}*/"):
            if not RunPlace(scratch.with_name(scratch.name.removeprefix(_STORING))).is_busy:
                shutil.rmtree(scratch, ignore_errors=True)


class RunUploader:
    """Stores a run's folder while the block trains in it, and at its end.

    A storage that does not answer meanwhile stops nothing. If another process becomes the owner of the run, the
    training ends after its step.

    Args:
        storage: Where to.
        folder: The run's folder, held by this process.
        is_offline: True if the run is recorded in its folder, and not in MLflow.
        is_training: False for a folder in which nothing changes.

    Raises:
        BusyError: Another machine trains the run, or has trained it since this folder's state.
        LostRunError: Another process has become the owner of the run.
        StorageError: The storage does not answer at the beginning, or for ten minutes at the end.
    """

    def __init__(self, storage: Storage, folder: RunFolder, *, is_offline: bool, is_training: bool = True) -> None:
        self._storage, self._path, self._is_training = storage, folder.path, is_training
        self._place = _name_place(folder.record, is_offline)
        self._owner = ""
        self._manifest = _Manifest(files={})
        self._sent: dict[str, tuple[_Version, StoredFile]] = {}
        self._stored: list[_Version] = []  # progress when the state was taken
        self._known: set[str] = set()  # names of files in the owner's folder, needed or not
        self._earlier: list[str] = []  # owners before, whose folders are there
        self._scratch = folder.path.with_name(f"{_STORING}{folder.path.name}")
        self._lost: LostRunError | None = None
        self._is_over, self._is_left = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=self._write_heartbeats, name="heartbeat", daemon=True),
            threading.Thread(target=self._store_states, name="storage", daemon=True),
        ]

    def __enter__(self) -> None:
        state, name = _find_state(self._storage, self._place), self._path.name
        if _is_trained(self._storage, self._place, self._path):
            raise BusyError(f"another machine trains run {name}; repeat the command when it has ended")
        if state is not None and not _is_continued(self._path, state):
            raise BusyError(f"another machine has trained run {name} since; repeat the command to go on from there")
        self._earlier = _list_owners(self._storage, self._place)
        number = 1 + int(self._earlier[-1].partition("-")[0] if self._earlier else 0)
        self._owner = f"{number:06d}-{uuid.uuid4().hex}"
        # Killed before its first state is stored, this folder still continues the stored one.
        owners = [*([state.owner] if state else []), self._owner]
        write_atomically(self._path / OWNERS_FILE, "\n".join(owners).encode())
        self._beat(0)
        try:
            self._threads[0].start()
            self._store()
        except BaseException:
            self._leave()
            raise
        if self._is_training:
            self._threads[1].start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        try:
            if self._is_training:
                self._threads[1].join()
            self._store_last(error)
        finally:
            self._leave()
        if self._lost is not None:
            raise self._lost from error

    def _store_last(self, error: BaseException | None) -> None:
        end_s, is_told = time.monotonic() + PATIENCE_S, False
        while self._lost is None:
            try:
                self._check_owner()
                self._store()
            except LostRunError as lost:
                self._lost = lost
            except (DarkroomError, OSError) as unanswered:
                unstored = f"the last state of run {self._path.name} is in {self._path} only"
                if error is None and time.monotonic() >= end_s:
                    raise StorageError(f"{unstored}; the next run like it stores it: {unanswered}") from unanswered
                if not is_told:
                    print(f"{unstored}{'' if error else ', waiting for the storage'}: {unanswered}", flush=True)
                if error is not None:
                    return
                is_told = True
                time.sleep(SECONDS_BETWEEN_TRIES)
            else:
                with suppress(StorageError, LostRunError):
                    self._remove_unused()
                return

    def _leave(self) -> None:
        """End the heartbeat, so that others need not wait for its silence."""
        self._is_left.set()
        if self._threads[0].ident is not None:
            self._threads[0].join()
        with suppress(StorageError):
            self._storage.remove(f"{self._place}/{self._owner}/{HEARTBEAT_FILE}")

    def _write_heartbeats(self) -> None:
        count = 0
        while not self._is_left.wait(SECONDS_BETWEEN_HEARTBEATS):
            count += 1
            with suppress(StorageError):  # the other thread tells it
                self._beat(count)

    def _beat(self, count: int) -> None:
        self._storage.write(f"{self._place}/{self._owner}/{HEARTBEAT_FILE}", str(count).encode())

    def _store_states(self) -> None:
        next_s, wait_s, was_answered = 0.0, FIRST_WAIT_S, True
        while not self._is_over.wait(wait_s):
            try:
                self._check_owner()
                start_s = time.monotonic()
                if self._read_progress() != self._stored and start_s >= next_s:
                    self._remove_unused()
                    self._store()
                    next_s = start_s + (time.monotonic() - start_s) / LONGEST_SHARE
                was_answered = True
            except LostRunError as lost:
                self._lost = lost
                stop_after_step()
                return
            except (DarkroomError, OSError) as error:
                if was_answered:
                    print(f"the training continues, its state is stored later: {error}", flush=True)
                was_answered = False
            wait_s = min(2 * wait_s, SECONDS_BETWEEN_HEARTBEATS)

    def _store(self) -> None:
        """Upload what has changed, then let it count.

        Raises:
            LostRunError: Another process has become the owner.
            StorageError: The storage does not answer.
        """
        place, progress = f"{self._place}/{self._owner}", self._read_progress()
        with writing_to(self._path, 0, f"storing run {self._path.name[:8]}"):
            try:
                versions, copies = self._take_state()
                for name, copy in copies.items():
                    self._sent[name] = versions[name], self._storage.store(copy, place)
                    self._known.add(self._sent[name][1].stored_as)
            finally:
                shutil.rmtree(self._scratch, ignore_errors=True)
        self._sent = {name: sent for name, sent in self._sent.items() if name in versions}
        manifest = _Manifest(files={name: stored for name, (_, stored) in self._sent.items()})
        if manifest != self._manifest:
            self._check_owner()
            before, self._manifest = self._manifest, _Manifest(files={})  # unknown, until the storage has answered
            self._storage.write(f"{place}/{MANIFEST_FILE}", manifest.model_dump_json(indent=1).encode())
            self._manifest = manifest
            if not before.files:
                write_atomically(self._path / OWNERS_FILE, self._owner.encode())
        self._stored = progress

    def _read_progress(self) -> list[_Version]:
        return [_read_version(self._path / name) for name in _PROGRESS]

    def _check_owner(self) -> None:
        owners = _list_owners(self._storage, self._place)
        if not owners or owners[-1] != self._owner:
            what = "is trained by another machine now" if owners else "was removed from the storage"
            raise LostRunError(f"run {self._path.name} {what}; this training of it ends")

    def _remove_unused(self) -> None:
        """Remove files that no manifest of this owner names, and earlier owners, where its last commit was answered."""
        if self._manifest.files:
            used = self._manifest.names | {stored.stored_as for _, stored in self._sent.values()}
            for name in sorted(self._known - used):
                self._storage.remove(f"{self._place}/{self._owner}/{name}")
                self._known.discard(name)
            while self._earlier:
                self._storage.remove(f"{self._place}/{self._earlier[-1]}")
                self._earlier.pop()

    def _take_state(self) -> tuple[dict[str, _Version], dict[str, Path]]:
        """Return the files of one state by their paths in the folder: versions, and copies of those that are new."""
        while True:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch.mkdir()
            state = _read_version(self._path / STATE_FILE)
            versions: dict[str, _Version] = {}
            copies: dict[str, Path] = {}
            with suppress(FileNotFoundError):  # replaced by the next state
                for file in sorted(self._path.rglob("*")):
                    name = file.relative_to(self._path).as_posix()
                    if not _is_plain(name) or file.is_symlink() or not file.is_file() or file.suffix == ".lock":
                        continue
                    versions[name] = _read_version(file)
                    if name not in self._sent or self._sent[name][0] != versions[name]:
                        copies[name] = self._scratch / str(len(copies))
                        _copy(file, copies[name])
                if _read_version(self._path / STATE_FILE) == state:
                    return versions, copies


def _list_owners(storage: Storage, place: str) -> list[str]:
    return [name for name in storage.list_folders(place) if re.fullmatch(_OWNER, name)]


def _find_state(storage: Storage, place: str) -> _State | None:
    """Return the state of a run that counts; what is damaged is told, and left out."""
    for owner in reversed(_list_owners(storage, place)):
        file = f"{place}/{owner}/{MANIFEST_FILE}"
        try:
            manifest = storage.read_json(file, _Manifest)
        except ValidationError:
            print(f"{storage.address}/{file} is damaged or of another version, and left out", flush=True)
            continue
        if manifest is not None and RUN_FILE in manifest.files:
            return _State(owner, manifest)
    return None


def _is_trained(storage: Storage, place: str, path: Path) -> bool:
    """Whether another machine trains a run at this moment.

    Args:
        storage: Where the run is.
        place: Its folder there.
        path: Its folder here, there or not.
    """
    owners = _list_owners(storage, place)
    if not owners or owners[-1] in _read_owners(path):
        return False
    file = f"{place}/{owners[-1]}/{HEARTBEAT_FILE}"
    before, end_s = storage.read(file), time.monotonic() + DEAD_AFTER_S
    while before is not None and time.monotonic() < end_s:
        time.sleep(DEAD_AFTER_S / 20)
        now = storage.read(file)
        if now is not None and now != before:
            return True
        before = now
    return False


def _is_continued(path: Path, state: _State) -> bool:
    """Whether a run's folder here holds a stored state or continues it."""
    fetched = path / FETCHED_FILE
    return state.owner in _read_owners(path) or (fetched.exists() and fetched.read_text() == str(state))


def _read_owners(path: Path) -> list[str]:
    file = path / OWNERS_FILE
    return file.read_text(encoding="utf-8").split() if file.exists() else []


def _put(scratch: Path, path: Path) -> None:
    """Let a fetched folder take the place of one that no process uses; BusyError where one does."""
    if not path.exists():
        scratch.rename(path)
        return
    older = path.with_name(f"{REMOVED_PREFIX}{uuid.uuid4().hex}")
    with RunPlace(path).lock():
        if (path / OWNERS_FILE).exists():
            print(
                f"run {path.name} was continued on another machine, whose state takes the place of this one's",
                flush=True,
            )
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


def _name_key(record: RunRecord, is_offline: bool) -> str:
    """Return what all runs like a record have in common."""
    text = f"{record.model_copy(update={'run_id': ''}).model_dump_json()} {is_offline}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _name_place(record: RunRecord, is_offline: bool) -> str:
    return f"{_FOLDER}/{record.config.recipe}/{_name_key(record, is_offline)}-{record.run_id}"


def _read_version(file: Path) -> _Version:
    """Return what changes when a file is replaced or written to; zeros where it is not there."""
    with suppress(FileNotFoundError):
        found = file.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return 0, 0, 0
