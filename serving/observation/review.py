"""The logged answers that a model was least sure of, for people to look through."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.regular_files import open_regular

# The end of the log, some 6,000 lines: reading costs some tens of milliseconds, and memory as long as it is kept.
MAX_READ_BYTES = 2_000_000
# The log is read this often at most.
_REREAD_S = 1.0


class LoggedAnswer(BaseModel):
    """A line of the request log, as far as a review needs it.

    Attributes:
        time: ISO 8601 time in UTC.
        picture_sha256: Of the file as it was sent, lower-case hexadecimal.
        model: Registered name.
        version: Version in the registry.
        label: Most probable class.
        probability: Probability of `label`, in [0, 1].
        is_confident: True if the prediction was accepted.
        is_kept: True if the image was kept too.
        request: Identifier of the request; empty in the logs of earlier versions.
        is_drawn: False if the request asked for this version.
    """

    model_config = ConfigDict(frozen=True)

    time: str
    picture_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    model: str
    version: str
    label: str
    probability: float = Field(ge=0, le=1)
    is_confident: bool
    is_kept: bool
    request: str = ""
    is_drawn: bool = True

    @property
    def position(self) -> tuple[float, str]:
        """Place in the queue: ascending probability, equal ones by their hash."""
        return self.probability, self.picture_sha256


def read_answers(file: Path) -> Iterator[LoggedAnswer]:
    """Yield the answers that a day's file of the request log has, in its order; damaged lines are passed over.

    Raises:
        OSError: The file cannot be read.
    """
    with suppress(FileNotFoundError), open_regular(file) as lines:  # removed meanwhile as the oldest
        for line in lines:
            with suppress(ValidationError):
                yield LoggedAnswer.model_validate_json(line)


class ReviewQueue:
    """The end of the request log by ascending probability; used from one thread."""

    def __init__(self, folder: Path, max_bytes: int = MAX_READ_BYTES) -> None:
        """Read nothing yet.

        Args:
            folder: `requests` under DARKROOM_HOME.
            max_bytes: Most bytes at the end of the log that are read.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._answers: list[LoggedAnswer] = []
        self._read_s: float | None = None

    def list_unsure(self, name: str) -> list[LoggedAnswer]:
        """Return a model's last answers whose images are kept, the least sure ones first, each image once.

        Args:
            name: Registered name of the model.
        """
        if self._read_s is None or time.monotonic() - self._read_s > _REREAD_S:
            self._answers = self._read()
            self._read_s = time.monotonic()
        return [answer for answer in self._answers if answer.model == name]

    def _read(self) -> list[LoggedAnswer]:
        latest: dict[tuple[str, str], LoggedAnswer] = {}
        for line in self._read_lines():
            with suppress(ValidationError):  # cut short, or changed by a person
                answer = LoggedAnswer.model_validate_json(line)
                # The newest lines come first.
                latest.setdefault((answer.model, answer.picture_sha256), answer)
        return sorted((one for one in latest.values() if one.is_kept), key=lambda one: one.position)

    def _read_lines(self) -> Iterator[bytes]:
        """Yield the lines at the end of the log, the newest first."""
        left = self._max_bytes
        for file in sorted(self._folder.glob("*.jsonl"), reverse=True):
            with suppress(OSError), open_regular(file) as stream:  # removed meanwhile as the oldest
                size = stream.seek(0, os.SEEK_END)
                start = max(0, size - left)
                stream.seek(start)
                lines = stream.read(left).splitlines()
                left -= size - start
                # The first one may be cut.
                yield from reversed(lines[1:] if start else lines)
            if left <= 0:
                return
