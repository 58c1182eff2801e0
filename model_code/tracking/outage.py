"""Outages of MLflow: one line, retries after growing pauses, and giving up in one line."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow.exceptions import MlflowException
from requests import HTTPError, RequestException
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm

from model_code.errors import TrackingError

MLFLOW_ERRORS = (MlflowException, RequestException, SQLAlchemyError, OSError)
# The same request would be refused again. BAD_REQUEST is not here: MLflow calls passing troubles of a database so.
_LASTING_CODES = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED"}
# Of HTTP: the server was slow, or asks for a pause.
_PASSING_STATUSES = {408, 429}


@dataclass(frozen=True)
class Patience:
    """How long to wait for MLflow.

    Attributes:
        first_pause_s: After the first failure; each later pause is twice as long.
        longest_pause_s: No pause is longer.
        limit_s: For what must be done before the command ends; a request that was sent before may take longer.
    """

    first_pause_s: float = 1.0
    longest_pause_s: float = 15.0
    limit_s: float = 120.0

    def list_pauses(self) -> Iterator[float]:
        """Yield the pauses after one failure, two in a row, and so on without end."""
        pause_s = self.first_pause_s
        while True:
            yield pause_s
            pause_s = min(2 * pause_s, self.longest_pause_s)


def is_lasting(error: Exception) -> bool:
    """Whether MLflow answered and repeating the request cannot help, or the fault is on this machine's disk."""
    if isinstance(error, HTTPError) and error.response is not None:
        return 400 <= error.response.status_code < 500 and error.response.status_code not in _PASSING_STATUSES
    if isinstance(error, OSError):
        return not isinstance(error, RequestException)
    return isinstance(error, MlflowException) and error.error_code in _LASTING_CODES


def describe(error: Exception) -> str:
    """Return the reason of an error in one line: of a failed connection, what the system said."""
    first: BaseException = error
    while not is_lasting(error) and (cause := first.__cause__ or first.__context__) is not None:
        first = cause
    text = str(getattr(first, "strerror", None) or first).strip()
    return (text or type(first).__name__).splitlines()[0]


def as_tracking_error(run_id: str, error: Exception) -> TrackingError:
    """Return what to tell who started a run."""
    if is_lasting(error):
        return TrackingError(
            f"MLflow does not take run {run_id} ({describe(error)}); what was trained is kept in the run's folder: "
            "mend this and repeat the same command"
        )
    return TrackingError(
        f"MLflow cannot be reached ({describe(error)}); run {run_id} is kept in its folder: start MLflow and repeat "
        "the same command, which goes on from there and trains no finished epoch again"
    )


@contextmanager
def naming_errors(run_id: str) -> Iterator[None]:
    """Turn the errors of MLflow into one line each.

    Raises:
        TrackingError: MLflow cannot be reached or refuses.
    """
    try:
        yield
    except MLFLOW_ERRORS as error:
        raise as_tracking_error(run_id, error) from error


def insist(send: Callable[[], object], run_id: str, label: str, patience: Patience) -> None:
    """Call `send` until MLflow answers.

    Args:
        send: May be called again after any failure.
        run_id: For the error.
        label: At the start of each line on the console.
        patience: Longest wait.

    Raises:
        TrackingError: MLflow cannot be reached within the limit, or refuses.
    """
    start_s = time.monotonic()
    is_waiting = False
    for pause_s in patience.list_pauses():
        try:
            send()
        except MLFLOW_ERRORS as error:
            left_s = start_s + patience.limit_s - time.monotonic()
            if is_lasting(error) or left_s <= 0:
                raise as_tracking_error(run_id, error) from error
            if is_waiting:
                say(label, f"MLflow does not answer yet; waiting {left_s:.0f} s more")
            else:
                say(label, f"MLflow cannot be reached ({describe(error)}); waiting for it, at most {left_s:.0f} s")
            is_waiting = True
        else:
            return
        time.sleep(min(pause_s, left_s))


def say(label: str, line: str) -> None:
    """Print a line from any thread, also beside a progress bar."""
    tqdm.write(f"{label}  {line}")
    sys.stdout.flush()
