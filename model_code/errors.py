"""The one exception tree: every error that Darkroom raises on purpose.

A message gives the value, what is allowed and the remedy, in one line; the command line prints it and exits with
`exit_status`.
"""

from collections.abc import Sequence


class DarkroomError(Exception):
    """Base of every error raised on purpose.

    Attributes:
        exit_status: Exit status of the `darkroom` command.
    """

    exit_status = 1


class UsageError(DarkroomError, ValueError):
    """The command or a setting is wrong: an unknown recipe, a value outside its range."""

    exit_status = 2


class SizeError(UsageError):
    """Images are smaller than a network can read."""


class DataError(DarkroomError):
    """Images or labels are missing, damaged or contradict each other."""


class FaultyFilesError(DataError):
    """Files of a source are wrong.

    Attributes:
        faults: (file, reason) of all of them; the message names some.
    """

    def __init__(self, message: str, faults: Sequence[tuple[str, str]]) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


class ChecksumError(DataError):
    """A file's checksum is not the published one."""


class DownloadError(DataError):
    """A download did not finish; what came so far is kept and the next try continues it."""


class StorageError(DarkroomError):
    """DARKROOM_STORAGE cannot be reached, or refuses what is asked."""


class DiskFullError(DarkroomError):
    """The disk is full; nothing that was complete before is lost."""


class NothingDoneError(DarkroomError):
    """There was nothing to do: what a job needs is not here."""


class TrainingError(DarkroomError):
    """Training cannot start or go on: loss not finite, device missing, weights that do not fit."""


class DivergedError(TrainingError):
    """A loss became NaN or infinite."""


class PrunedError(TrainingError):
    """A trial of a sweep was ended early: its validation accuracy was below that of the others."""


class NodeError(TrainingError):
    """A node of a cluster cannot train any run: it lacks the home, a library, or has other code."""


class LostRunError(TrainingError):
    """The process of a run, or its node, has died; the run can be resumed."""


class PeerEndedError(TrainingError):
    """Another process of the same training has ended; that one says why."""


class TrackingError(DarkroomError):
    """MLflow cannot be reached, or holds no such run."""


class ReleaseError(DarkroomError):
    """A model is refused for release, or there is nothing to release."""


class ExportError(ReleaseError):
    """A run cannot be exported: its files are not those of its training, or ONNX does not answer the same."""


class ServiceError(DarkroomError):
    """The prediction service does not answer what it is asked."""


class BusyError(DarkroomError):
    """Another Darkroom process holds what this one needs."""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
