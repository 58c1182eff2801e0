"""Changes of a champion as the ledger's file holds them, and as an SQLite home proves them: read without MLflow."""

from collections.abc import Collection, Mapping
from pathlib import Path

from model_code.errors import ReleaseError
from model_code.release.registered import read_registered
from model_code.settings import Settings
from serving.bundle.store import CHAMPION, Change, read_pointer
from serving.errors import BundleError

LEDGER_FILE = "ledger.jsonl"
# MLflow's pages leave out tags that begin with `mlflow.`; earlier versions wrote the second one.
TAG_PREFIX, _EARLIER_TAG_PREFIX = "mlflow.darkroom.change.", "change."


def read_ledger(bundles_dir: Path, name: str) -> tuple[Change, ...]:
    """Return every change of a name, the oldest first; a last line that a power cut tore is left out.

    Raises:
        ReleaseError: A line is damaged.
    """
    file = bundles_dir / name / LEDGER_FILE
    try:
        *lines, _torn = file.read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return ()
    try:
        changes = tuple(Change.model_validate_json(line) for line in lines)
        numbers = [change.number for change in changes]
        if numbers != sorted(set(numbers)):
            raise ValueError(f"numbers {numbers}")
    except ValueError as error:
        raise ReleaseError(
            f"{file} is damaged; move it away and run `darkroom history {name}`: it is made anew from the registry"
        ) from error
    return changes


def read_settled(settings: Settings, name: str) -> tuple[Change, ...] | None:
    """Return every change of a name where pointer, ledger and registry agree; None where `complete` has to look.

    Agreement means that `complete` (`ledger.py`) would do nothing: no move was interrupted, no other home has written
    into the registry, and the alias was not moved by other means.

    Raises:
        ReleaseError: The ledger is damaged.
    """
    registered = read_registered(settings, name)
    if registered is None:
        return None
    changes = read_ledger(settings.bundles_dir, name)
    if not changes:
        return None if registered else ()
    try:
        pointer = read_pointer(settings.bundles_dir, name)
    except BundleError:
        return None
    tags = {number: text for one in registered for number, text in list_change_tags(one.tags).items()}
    # A retired version has taken its tags along.
    there = {one.version for one in registered}
    lines = {change.number: change.model_dump_json() for change in changes if change.to_version in there}
    champions = [one.version for one in registered if CHAMPION in one.aliases]
    is_settled = tags == lines and champions == [changes[-1].to_version] and pointer.change == changes[-1]
    return changes if is_settled else None


def list_change_tags(tags: Mapping[str, str]) -> dict[int, str]:
    """Return the changes among a version's tags, as JSON, by number."""
    numbered = ((key.removeprefix(TAG_PREFIX).removeprefix(_EARLIER_TAG_PREFIX), key) for key in tags)
    return {int(number): tags[key] for number, key in numbered if number != key and number.isdecimal()}


def find_previous(changes: tuple[Change, ...]) -> str | None:
    """Return the version that a rollback goes back to: the champion before the last promotion that still counts.

    A rollback takes the promotions after its version away, so that rolling back twice goes back by two.
    """
    counting: list[str] = []
    for change in changes:
        if change.action == "rollback" and change.to_version in counting:
            del counting[len(counting) - counting[::-1].index(change.to_version) :]
        elif counting[-1:] != [change.to_version]:
            counting.append(change.to_version)
    return counting[-2] if len(counting) > 1 else None


def find_rollback_of(changes: tuple[Change, ...], versions: Collection[str]) -> Change | None:
    """Return the rollback that took the alias away from one of these, if that is the last that happened to them."""
    for change in reversed(changes):
        if change.to_version in versions:
            return None
        if change.from_version in versions:
            return change if change.action == "rollback" else None
    return None


def refuse_champion(name: str, version: str) -> ReleaseError:
    """Return the error of a champion that is to be its own challenger."""
    return ReleaseError(f"version {version} is the champion of {name}; a challenger is another version")
