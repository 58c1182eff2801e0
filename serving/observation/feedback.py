"""True labels that people gave, as images in class folders: what the next training can be given.

    <home>/feedback/<model name>/<label>/<sha256>.<png, jpg, ...>

`darkroom data add NAME --from` reads the folder of a model as it is. An image has one label: another one moves it.

Services of one machine, or of several that share the volume, take a lock around each change (`.lock`, flock). Between
machines this needs a file system whose locks hold between them: NFS 4 without `nolock` or `local_lock`, mounted with
`lookupcache=positive`; CephFS; a cloud's file store. The kernel frees the lock of a service that dies. The file of the
lock holds the size of all images, so that the services keep the limit together.
"""

import fcntl
import os
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from serving.bundle.image_structure import find_format
from serving.bundle.store import flush
from serving.errors import BadParameterError, NotStoredError
from serving.regular_files import count_disk_bytes, writing_whole

FEEDBACK_FOLDER = "feedback"
MAX_FEEDBACK_BYTES = 2_000_000_000
# Of one model: its folders are counted with each image.
MAX_FEEDBACK_IMAGES = 100_000
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}
# Of images that are being written, beside the models' folders.
_SCRATCH_FOLDER = ".scratch"
_LOCK_FILE = ".lock"
# A service that holds the lock for longer hangs; waiting requests are told.
LOCK_TIMEOUT_S = 10.0
_LOCK_INTERVAL_S = 0.005
# What a killed service left is removed after this.
_STALE_S = 3600.0
_MOST_NAME_BYTES = 255
# How long a measured size counts, with what was added since: people may remove files. Before a refusal it is measured
# again, unless that was just done.
_MEASURE_INTERVAL_S, _REFUSAL_INTERVAL_S = 600.0, 5.0


class FeedbackStore:
    """The feedback of every model under one home; safe to call from several threads, processes and machines.

    Attributes:
        folder: Folder of all files.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_FEEDBACK_BYTES) -> None:
        """Make nothing on disk yet.

        Args:
            folder: `feedback` under DARKROOM_HOME.
            max_bytes: Of all models' images together.
        """
        self.folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    def save(self, name: str, label: str, labels: Collection[str], sha256: str, data: bytes) -> int:
        """Store an image under its true label, durably; the label that it had before is forgotten.

        Args:
            name: Registered name of the model.
            label: One of `labels`.
            labels: All that the model knows.
            sha256: Of `data`, lower-case hexadecimal.
            data: The encoded image, which decodes.

        Returns:
            How many images have feedback for this model now.

        Raises:
            BadParameterError: The label is not one of the model's, or cannot be the name of a folder.
            NotStoredError: The limit is reached, or the system refuses to write.
        """
        if label not in labels:
            raise BadParameterError(f"label {label[:80]!r} is none of {name}'s classes; they are {name_some(labels)}")
        root = self.folder / name
        target = find_label_folder(root, label) / f"{sha256}{find_suffix(data)}"
        try:
            with self._lock, self._alone() as lock_file:
                return self._place(name, target, data, lock_file)
        except OSError as error:
            raise NotStoredError(
                f"feedback cannot be written below {self.folder}: {error.strerror or error}; "
                "who runs the service must free some space or make the folder writable"
            ) from error

    def list_labels(self, name: str) -> dict[str, str]:
        """Return the label of each image of a model that has one, by the image's hash.

        Args:
            name: Registered name of the model.
        """
        root = self.folder / name
        files = map(Path, _scan(root)) if root.is_dir() else ()
        return {file.name.partition(".")[0]: file.parent.name for file in files}

    def _place(self, name: str, target: Path, data: bytes, lock_file: int) -> int:
        """Leave one copy of an image, at `target`; returns the model's number of images. The caller holds the lock."""
        root = target.parent.parent
        count, is_there = count_images(root), target.is_file()
        # Also under labels that only an earlier version of the model had.
        before = [path for path in root.glob(f"*/{target.name}") if path.parent != target.parent and path.is_file()]
        if not is_there:
            if before:
                target.parent.mkdir(parents=True, exist_ok=True)
                before[0].replace(target)
                flush(target.parent)
                flush(root)
            else:
                size = self._check_room(name, count, len(data), lock_file)
                self._write(target, data, size, lock_file)
        for path in before:
            path.unlink(missing_ok=True)
            # Class folders that are packed as they are may not be empty.
            with suppress(OSError):
                path.parent.rmdir()
        return count + 1 - is_there - len(before)

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """Keep other services out of the folder; yields the file of the lock.

        Raises:
            NotStoredError: One of them does not let go.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.folder / _LOCK_FILE, flags, 0o600)
        try:
            deadline_s = time.monotonic() + LOCK_TIMEOUT_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline_s:
                        raise NotStoredError(
                            f"another service has held the feedback for {LOCK_TIMEOUT_S:g} seconds; try again, or end "
                            f"the one that hangs: `fuser {self.folder / _LOCK_FILE}` names it"
                        ) from error
                    time.sleep(_LOCK_INTERVAL_S)
            yield descriptor
        finally:
            os.close(descriptor)

    def _check_room(self, name: str, count: int, needed_bytes: int, lock_file: int) -> "_Size":
        """Return the size of all images, to which an image may be added."""
        if count >= MAX_FEEDBACK_IMAGES:
            raise NotStoredError(
                f"{name} has {MAX_FEEDBACK_IMAGES:,} images with feedback, as many as it may; who runs the service "
                f"must remove some from {self.folder / name}"
            )
        size = _Size.read(lock_file)
        if not 0 <= time.time() - size.measured_s <= _MEASURE_INTERVAL_S:
            size = self._measure()
        if size.size_bytes + needed_bytes > self._max_bytes and time.time() - size.measured_s > _REFUSAL_INTERVAL_S:
            size = self._measure()
        if size.size_bytes + needed_bytes > self._max_bytes:
            size.write(lock_file)
            raise NotStoredError(
                f"feedback takes {size.size_bytes:,} bytes and may take {self._max_bytes:,}; who runs the service "
                f"must remove some from {self.folder / name}"
            )
        return size

    def _measure(self) -> "_Size":
        self._remove_stale()
        files = (file for root in self.folder.iterdir() if root.is_dir() for file in _scan(root))
        return _Size(sum(count_disk_bytes(file.stat()) for file in files), time.time())

    def _write(self, target: Path, data: bytes, size: "_Size", lock_file: int) -> None:
        scratch_folder = self.folder / _SCRATCH_FOLDER
        scratch_folder.mkdir(mode=0o700, exist_ok=True)
        with writing_whole(scratch_folder, data) as scratch:
            # Counted first: who is killed here has counted too much, until it is measured again.
            replace(size, size_bytes=size.size_bytes + count_disk_bytes(scratch.stat())).write(lock_file)
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch.replace(target)
            flush(target.parent)
            flush(target.parent.parent)

    def _remove_stale(self) -> None:
        """Remove what services left that were killed while they wrote."""
        for path in (self.folder / _SCRATCH_FOLDER).glob("*"):
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Size:
    """What all images take on the disk, and when they were measured, seconds since 1970."""

    size_bytes: int
    measured_s: float

    @classmethod
    def read(cls, lock_file: int) -> "_Size":
        """Return what the service before noted; what it did not write whole was measured never."""
        try:
            size_bytes, measured_s = os.pread(lock_file, 100, 0).decode().split()
            return cls(int(size_bytes), float(measured_s))
        except ValueError:
            return cls(0, 0.0)

    def write(self, lock_file: int) -> None:
        """Note it for the next service."""
        os.ftruncate(lock_file, 0)
        os.pwrite(lock_file, f"{self.size_bytes} {self.measured_s}\n".encode(), 0)


def count_images(root: Path) -> int:
    """Return how many images a model's class folders hold; 0 without any."""
    return sum(1 for _ in _scan(root)) if root.is_dir() else 0


def _scan(root: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the images of a model's class folders."""
    with os.scandir(root) as folders:
        for folder in folders:
            if folder.is_dir():
                # Another service may remove an empty folder meanwhile.
                with suppress(FileNotFoundError), os.scandir(folder) as files:
                    yield from (file for file in files if file.is_file() and not file.name.startswith("."))


def find_label_folder(root: Path, label: str) -> Path:
    """Return the folder of a label, directly below `root`.

    Raises:
        BadParameterError: The label cannot be the name of a folder.
    """
    if not is_folder_name(label):
        raise BadParameterError(f"label {label[:80]!r} cannot be the name of a folder, so no feedback is stored for it")
    return root / label


def is_folder_name(label: str) -> bool:
    """Return True if a label names a folder in its parent, not a hidden one, which a data set would pass over."""
    return not (
        label.startswith(".") or {"/", "\\", "\0"} & set(label) or not 0 < len(os.fsencode(label)) <= _MOST_NAME_BYTES
    )


def find_suffix(data: bytes) -> str:
    """Return the file name's ending for an encoded image that decodes, by its first bytes.

    Pillow is not asked: even to open an image it runs decoders, which belong into the sandbox.
    """
    return _SUFFIXES.get(find_format(data) or "", ".ppm" if data.startswith(b"P") else ".png")


def name_some(labels: Collection[str], most: int = 20) -> str:
    """Return some labels for a message, and how many more there are."""
    shown = ", ".join(sorted(labels)[:most])
    return f"{shown} and {len(labels) - most} more" if len(labels) > most else shown
