"""A sample of what the service answered, for people to look through: a line for each image, images only if asked.

    <home>/requests/2026-11-23.jsonl        what was answered on a day (UTC), a JSON object in each line
    <home>/requests/pictures/<sha256>       the files as they were sent

Answers never wait for it: a thread writes what it finds in a queue, and what does not fit the queue, cannot be written
or would wait for a disk that hangs is counted and left out. A line that a crash cut short is followed by a line break,
so that only itself is lost.
"""

import json
import logging
import os
import secrets
import stat
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from serving.decoding.encoded import EncodedImage
from serving.heartbeat import Heartbeat
from serving.models.predictions import PredictAnswer
from serving.regular_files import count_disk_bytes, writing_whole

REQUESTS_FOLDER = "requests"
IMAGES_FOLDER = "pictures"
MAX_LOG_BYTES = 1_000_000_000
# What waits to be written; images are held in memory until then.
_MAX_QUEUED_LINES = 4096
_MAX_QUEUED_BYTES = 64_000_000
# Once the folder is too large, so much of its limit is kept.
_KEPT_FRACTION = 0.9
# After so much of the limit was written the folder is measured again: other services may share it.
_MEASURED_FRACTION = 0.05
_STOP_TIMEOUT_S = 5.0
# A disk that takes longer for one image hangs.
_HUNG_S = 9.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Entry:
    day: str
    record: dict[str, object]
    data: bytes | None

    @property
    def size_bytes(self) -> int:
        return len(self.data or b"")


class RequestLog:
    """Writes a share of the answered images; `add` is called from one thread.

    Attributes:
        folder: Folder of all files.
        dropped: Images that should have been written and were not.
    """

    def __init__(
        self,
        folder: Path,
        share: float,
        keeps_images: bool = False,
        *,
        max_bytes: int = MAX_LOG_BYTES,
        on_drop: Callable[[int], None] | None = None,
    ) -> None:
        """Start the thread; nothing is made on disk before the first line.

        Args:
            folder: `requests` under DARKROOM_HOME.
            share: Of all images, in [0, 1]. An image's hash decides, so that the same one is always in or out.
            keeps_images: True if the images are kept too.
            max_bytes: Size limit of the folder on the disk, in whole blocks; beyond it the oldest files are removed.
            on_drop: Told how many images were left out, from any thread.
        """
        self.folder = folder
        self.dropped = 0
        self._share = share
        self._keeps_images = keeps_images
        self._max_bytes = max_bytes
        self._on_drop = on_drop
        self._queue: deque[_Entry] = deque()
        self._queued_bytes = 0
        self._changed = threading.Condition()
        self._is_closing = False
        self._told_causes: set[str] = set()
        self._size_bytes: int | None = None  # not measured yet
        self._added_bytes = 0
        self._heartbeat = Heartbeat(_HUNG_S)
        self._thread = threading.Thread(target=self._write_all, name="request log", daemon=True)
        self._thread.start()

    def add(self, answer: PredictAnswer, images: Sequence[EncodedImage], *, is_drawn: bool = True) -> None:
        """Queue those of an answer's images that are in the sample; never waits.

        Args:
            answer: The answer.
            images: Its images.
            is_drawn: False if the request asked for the version that answered.
        """
        now = datetime.now(UTC)
        model, request = answer.model, secrets.token_hex(8)
        entries = [
            _Entry(
                day=now.date().isoformat(),
                record={
                    "time": now.isoformat(timespec="milliseconds"),
                    "request": request,
                    "is_drawn": is_drawn,
                    "picture_sha256": image.sha256,
                    "model": model.name,
                    "version": model.version,
                    "model_sha256": model.sha256,
                    "precision": model.precision,
                    "label": prediction.label,
                    "probability": prediction.probability,
                    "is_confident": prediction.is_confident,
                    "is_kept": self._keeps_images,
                },
                data=image.data if self._keeps_images else None,
            )
            for prediction, image in zip(answer.predictions, images, strict=True)
            if is_sampled(image.sha256, self._share)
        ]
        if not entries:
            return
        if self._heartbeat.is_hung:
            self._drop(len(entries), f"the disk has not answered for {_HUNG_S:g} s")
            return
        with self._changed:
            left_out = 0
            for entry in entries:
                if (
                    len(self._queue) >= _MAX_QUEUED_LINES
                    or self._queued_bytes + entry.size_bytes > _MAX_QUEUED_BYTES
                    or self._is_closing
                ):
                    left_out += 1
                    continue
                self._queue.append(entry)
                self._queued_bytes += entry.size_bytes
            self._changed.notify()
        if left_out:
            self._drop(left_out, "the disk is slower than the answers")

    def close(self) -> None:
        """Write what is queued, for some seconds at most, and end the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(_STOP_TIMEOUT_S)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                while not (self._queue or self._is_closing):
                    self._changed.wait()
                if not self._queue:
                    return
                day = self._queue[0].day
                entries = []
                while self._queue and self._queue[0].day == day:
                    entries.append(self._queue.popleft())
            with self._heartbeat.work():
                try:
                    self._write(day, entries)
                except Exception:
                    # The thread must outlive what nobody foresaw: without it nothing is logged any more.
                    logger.exception("%d requests are not logged", len(entries))
                    self._drop(len(entries), "an error that was not expected")
            with self._changed:
                self._queued_bytes -= sum(entry.size_bytes for entry in entries)

    def _write(self, day: str, entries: list[_Entry]) -> None:
        written: list[_Entry] = []
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._size_bytes is None or self._added_bytes > _MEASURED_FRACTION * self._max_bytes:
                self._size_bytes, self._added_bytes = sum(size for _, size, _ in self._list_files()), 0
            for entry in entries:
                self._heartbeat.beat()
                if entry.data is not None:
                    self._added_bytes += _keep_image(
                        self.folder / IMAGES_FOLDER / str(entry.record["picture_sha256"]), entry.data
                    )
                written.append(entry)
        except OSError as error:
            self._drop(len(entries) - len(written), str(error.strerror or error))
        lines = [json.dumps(entry.record, ensure_ascii=False).encode() + b"\n" for entry in written]
        try:
            if lines:
                self._added_bytes += _append(self.folder / f"{day}.jsonl", b"".join(lines))
        except OSError as error:
            self._drop(len(lines), str(error.strerror or error))
        try:
            if (self._size_bytes or 0) + self._added_bytes > self._max_bytes:
                self._remove_oldest()
        except OSError as error:
            self._drop(0, str(error.strerror or error))

    def _remove_oldest(self) -> None:
        files = sorted(self._list_files())
        size_bytes = sum(size for _, size, _ in files)
        for _, size, path in files:
            if size_bytes <= _KEPT_FRACTION * self._max_bytes:
                break
            self._heartbeat.beat()
            path.unlink(missing_ok=True)
            size_bytes -= size
        self._size_bytes, self._added_bytes = size_bytes, 0

    def _list_files(self) -> list[tuple[int, int, Path]]:
        """Return time of the last change (ns), bytes on the disk and path of every file."""
        found = []
        for folder in (self.folder, self.folder / IMAGES_FOLDER):
            if folder.is_dir():
                with os.scandir(folder) as scan:
                    for entry in scan:
                        self._heartbeat.beat()
                        # Another service may remove files of the same folder meanwhile.
                        with suppress(FileNotFoundError):
                            status = entry.stat(follow_symlinks=False)
                            if stat.S_ISREG(status.st_mode):
                                found.append((status.st_mtime_ns, count_disk_bytes(status), Path(entry.path)))
        return found

    def _drop(self, count: int, cause: str) -> None:
        self.dropped += count
        if self._on_drop is not None and count:
            self._on_drop(count)
        if cause not in self._told_causes:
            self._told_causes.add(cause)
            logger.warning("%s: some requests are not logged: %s", self.folder, cause)


def is_sampled(sha256: str, share: float) -> bool:
    """Return True if an image of that hash is in a sample of `share`, which each larger sample contains."""
    return int(sha256[:15], 16) < share * 16**15


def _append(file: Path, content: bytes) -> int:
    """Append whole lines in one write; return how many bytes."""
    with file.open("ab+", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        if size:
            stream.seek(size - 1)
            if stream.read(1) != b"\n":  # somebody was cut off
                content = b"\n" + content
        written = stream.write(content)
        if written != len(content):
            raise OSError(f"only {written} of {len(content)} bytes were written")
        return written


def _keep_image(file: Path, data: bytes) -> int:
    """Write an image whole or not at all, unless it is there; return how many bytes of the disk were added."""
    try:
        os.utime(file)  # as new as its last request
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
        with writing_whole(file.parent, data, is_durable=False) as scratch:
            size_bytes = count_disk_bytes(scratch.stat())
            scratch.replace(file)
        return size_bytes
    return 0
