"""Folders of runs in DARKROOM_STORAGE: what one machine trained, another one resumes or keeps.

    runs/<recipe>/<key>-<run id>/manifest.json       who trains the run, and where its files are
    runs/<recipe>/<key>-<run id>/<name>              a file
    runs/<recipe>/<key>.attempt                      name for the making of a new run (`run_folder.making_run`)

The key stands for everything that makes runs the same. Stored files are never changed: replacing manifest.json is the
moment at which a newer state counts, and a process killed at any time leaves one state or the next, whole. A process
that takes a run over writes its own name there; the one before notices when it stores its next state, and stops.
"""

import hashlib
import os
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_code.data.progress import show_progress
from model_code.disk import hold_lock, write_atomically, writing_to
from model_code.errors import LostRunError, StorageError
from model_code.storage import PlainPath, Storage, StoredFile
from model_code.training.run_folder import LOCK_FILE, RESULT_FILE, STATE_FILE, RunFolder, RunPlace, RunRecord

# Storing takes at most a tenth of the time.
SECONDS_BETWEEN_STATES, LONGEST_SHARE = 2.0, 0.1
# How long the last state of a training is offered to a storage that does not answer.
PATIENCE_S, SECONDS_BETWEEN_TRIES = 600.0, 5.0
OWNER_FILE = ".owner"  # in a run's folder: who trained it here
_FOLDER, _MANIFEST_FILE = "runs", "manifest.json"
_REPLACED = (".safetensors", ".pt")  # as a whole; other files grow, or are small
_Version = tuple[int, int, int]
_TRIES = 5


class _Manifest(BaseModel):
    """Who trains a run, or did last, and the files of its folder by their paths in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    files: Mapping[PlainPath, StoredFile]


class StoredRuns:
    """The runs in a storage.

    Args:
        storage: Where they are.
        checkpoints_dir: Folder of this machine's runs.
    """

    def __init__(self, storage: Storage, checkpoints_dir: Path) -> None:
        self._storage, self._checkpoints_dir = storage, checkpoints_dir

    def fetch_like(self, record: RunRecord, *, has_complete: bool = True) -> None:
        """Bring the runs like `record` here, its run id apart, complete ones only on request; see `fetch`."""
        wanted = _name_key(record)
        self._fetch(record.config.recipe, lambda key, _: key == wanted, has_complete=has_complete)

    def fetch(self, recipe: str, run_id: str | None = None) -> None:
        """Bring the runs of a recipe here, or one of them.

        What this machine trains, trained last or has to its end stays as it is.

        Raises:
            StorageError: The storage cannot be read, or a file there is damaged.
            DiskFullError: This machine has no room for a run.
        BusyError: Another process of this machine begins to train a run while it comes.
        """
        self._fetch(recipe, lambda _, found: run_id in (None, found))

    def claim_attempt(self, record: RunRecord, own: str) -> str:
        """Return the name for the making of a new run that a process took which then died, else `own`."""
        name = _name_attempt(record)
        found = self._storage.read(name)
        if found is None:
            self._storage.write(name, own.encode())
        return own if found is None else found.decode()

    def remove(self, record: RunRecord) -> None:
        """Remove a run from the storage."""
        self._storage.remove(_name_place(record))

    def _fetch(self, recipe: str, is_wanted: Callable[[str, str], bool], *, has_complete: bool = True) -> None:
        for name in self._storage.list_folders(f"{_FOLDER}/{recipe}"):
            key, _, run_id = name.partition("-")
            if is_wanted(key, run_id):
                with hold_lock(self._checkpoints_dir / ".fetching.lock", f"fetching run {run_id}"):
                    self._fetch_run(f"{_FOLDER}/{recipe}/{name}", self._checkpoints_dir / run_id, has_complete)

    def _fetch_run(self, place: str, path: Path, has_complete: bool) -> None:
        for _ in range(_TRIES):
            manifest = _read_manifest(self._storage, place)
            is_here = (path / RESULT_FILE).exists() or RunPlace(path).is_busy
            if manifest is None or is_here or _read_owner(path) == manifest.owner:
                return
            if RESULT_FILE in manifest.files and not has_complete:
                return
            scratch = path.parent / f".fetched-{path.name}"
            shutil.rmtree(scratch, ignore_errors=True)
            try:
                self._download(place, manifest, scratch)
            except StorageError:
                if _read_manifest(self._storage, place) == manifest:
                    raise
                continue  # the process that trains it stored another state meanwhile
            write_atomically(scratch / OWNER_FILE, manifest.owner.encode())
            if path.exists():
                older = path.parent / f".older-{path.name}"
                shutil.rmtree(older, ignore_errors=True)
                with RunPlace(path).lock():
                    path.rename(older)
                shutil.rmtree(older)
            scratch.rename(path)
            return
        raise StorageError(f"{self._storage.address}: run {path.name} changes while it is read; try again later")

    def _download(self, place: str, manifest: _Manifest, folder: Path) -> None:
        size_bytes = sum(file.size_bytes for file in manifest.files.values())
        purpose = f"fetching run {place.rpartition('-')[2][:8]} from {self._storage.address}"
        with writing_to(folder, size_bytes, purpose), show_progress(purpose, size_bytes, "B") as advance:
            self._storage.fetch(place, manifest.files, folder, advance)


class RunUploader:
    """Stores a run's folder while the block trains in it, at the end too; another machine resumes what was stored.

    A storage that does not answer meanwhile stops nothing. If another machine takes the run over, this process is sent
    SIGTERM, which ends its training after the step.

    Args:
        storage: Where to.
        folder: The run's folder, held by this process.

    Raises:
        LostRunError: Another machine has taken the run over.
        StorageError: The storage does not answer at the beginning, or for ten minutes at the end.
    """

    def __init__(self, storage: Storage, folder: RunFolder) -> None:
        self._storage, self._folder = storage, folder
        self._place = _name_place(folder.record)
        self._owner = uuid.uuid4().hex
        self._sent: dict[str, tuple[_Version, StoredFile]] = {}
        self._counting: dict[str, tuple[_Version, StoredFile]] = {}  # what the manifest names
        self._scratch = folder.path.parent / f".storing-{folder.path.name}"
        self._lost: LostRunError | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._store_now_and_then, name="storage", daemon=True)

    def __enter__(self) -> None:
        self._store(is_first=True)
        write_atomically(self._folder.path / OWNER_FILE, self._owner.encode())
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
                self._remove_unused()
            except LostRunError as lost:
                self._lost = lost
            except (StorageError, OSError) as unanswered:
                if time.monotonic() >= end_s:
                    unstored = f"the last state of run {self._folder.path.name} is in {self._folder.path} only"
                    if error is None:
                        raise StorageError(f"{unstored}: {unanswered}") from unanswered
                    print(f"{unstored}: {unanswered}", flush=True)
                    return
                if not is_told:
                    print(f"waiting for the storage: {unanswered}", flush=True)
                is_told = True
                time.sleep(SECONDS_BETWEEN_TRIES)
            else:
                return
        raise self._lost from error

    def _store_now_and_then(self) -> None:
        was_answered, has_unused, wait_s = True, True, SECONDS_BETWEEN_STATES
        while not self._is_over.wait(wait_s):
            start_s = time.monotonic()
            try:
                if has_unused:
                    self._remove_unused()
                has_unused = self._store()
                was_answered = True
            except LostRunError as lost:
                self._lost = lost
                os.kill(os.getpid(), signal.SIGTERM)
                return
            except (StorageError, OSError) as error:
                if was_answered:
                    print(f"the training goes on without its storage: {error}", flush=True)
                was_answered = False
            wait_s = max(SECONDS_BETWEEN_STATES, (time.monotonic() - start_s) / LONGEST_SHARE)

    def _store(self, *, is_first: bool = False) -> bool:
        """Upload what has changed, then let it count; return whether there was any.

        Raises:
            LostRunError: Another process has taken the run over.
            StorageError: The storage does not answer.
        """
        if not is_first:
            self._check_owner()
        shutil.rmtree(self._scratch, ignore_errors=True)  # a killed process left it
        try:
            versions, copies = self._take_state()
            if not is_first and versions == {name: version for name, (version, _) in self._counting.items()}:
                return False
            self._sent = {name: sent for name, sent in self._sent.items() if name in versions}
            for name, copy in copies.items():
                if name not in self._sent or self._sent[name][0] != versions[name]:
                    self._sent[name] = versions[name], self._storage.store(copy, self._place)
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
        if not is_first:
            self._check_owner()
        manifest = _Manifest(owner=self._owner, files={name: stored for name, (_, stored) in self._sent.items()})
        self._storage.write(f"{self._place}/{_MANIFEST_FILE}", manifest.model_dump_json(indent=1).encode())
        self._counting = dict(self._sent)
        return True

    def _remove_unused(self) -> None:
        """Remove what neither the manifest names nor the next one will.

        Not at once after it was written: another process that is no owner any more may write its own over it once, if
        it looked for the owner before, and that one must find its files.
        """
        self._check_owner()
        used = {stored.stored_as for files in (self._counting, self._sent) for _, stored in files.values()}
        for name in self._storage.list_files(self._place):
            if name not in used | {_MANIFEST_FILE}:
                self._storage.remove(f"{self._place}/{name}")

    def _take_state(self) -> tuple[dict[str, _Version], dict[str, Path]]:
        """Return the files of one state, by their paths in the folder: their versions, and names that they keep."""
        root = self._folder.path
        while True:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch.mkdir()
            versions: dict[str, _Version] = {}
            copies: dict[str, Path] = {}
            state = _read_version(root / STATE_FILE)
            with suppress(FileNotFoundError):  # replaced by the next state
                for file in sorted(root.rglob("[!.]*")):
                    name = file.relative_to(root).as_posix()
                    if file.is_dir() or name == LOCK_FILE:
                        continue
                    versions[name], copies[name] = _read_version(file), self._scratch / str(len(copies))
                    _keep(file, copies[name])
                if _read_version(root / STATE_FILE) == state:
                    return versions, copies

    def _check_owner(self) -> None:
        now = _read_manifest(self._storage, self._place)
        if now is None or now.owner != self._owner:
            what = "was removed from the storage" if now is None else "is trained by another machine now"
            raise LostRunError(f"run {self._folder.path.name} {what}; this training of it ends")


def _name_key(record: RunRecord) -> str:
    """Return what all runs like a record have in common."""
    return hashlib.sha256(record.model_copy(update={"run_id": ""}).model_dump_json().encode()).hexdigest()[:16]


def _name_place(record: RunRecord) -> str:
    return f"{_FOLDER}/{record.config.recipe}/{_name_key(record)}-{record.run_id}"


def _name_attempt(record: RunRecord) -> str:
    return f"{_FOLDER}/{record.config.recipe}/{_name_key(record)}.attempt"


def _read_manifest(storage: Storage, place: str) -> _Manifest | None:
    content = storage.read(f"{place}/{_MANIFEST_FILE}")
    try:
        return None if content is None else _Manifest.model_validate_json(content)
    except ValidationError as error:
        raise StorageError(
            f"{storage.address}/{place}/{_MANIFEST_FILE} is damaged or of another version; remove {place} there"
        ) from error


def _read_owner(path: Path) -> str | None:
    file = path / OWNER_FILE
    return file.read_text(encoding="utf-8") if file.exists() else None


def _keep(file: Path, copy: Path) -> None:
    """Give the content of a file another name, at which it does not change."""
    if file.suffix in _REPLACED:
        try:
            copy.hardlink_to(file)
        except FileNotFoundError:
            raise
        except OSError:  # a disk without such links
            shutil.copyfile(file, copy)
    else:
        shutil.copyfile(file, copy)


def _read_version(file: Path) -> _Version:
    """Return what changes when a file is replaced or written to; zeros where it is not there."""
    with suppress(FileNotFoundError):
        found = file.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return 0, 0, 0
