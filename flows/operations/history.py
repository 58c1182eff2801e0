"""History of a name: every move of its champion. MLflow is asked only where the home does not prove them."""

import logging

from model_code.disk import hold_lock
from model_code.errors import ReleaseError, UsageError
from model_code.release.changes import find_previous, read_settled
from model_code.release.registered import read_registered
from model_code.settings import Settings, load_settings
from serving.bundle.store import Change

_log = logging.getLogger(__name__)


def read_changes(name: str) -> tuple[Change, ...]:
    """Return every move of a name's champion, the oldest first.

    Raises:
        ReleaseError: Nothing was ever released under that name.
    """
    settings = load_settings()
    changes = read_settled(settings, name)
    if changes is None:
        changes = _complete(settings, name)
    if not changes:
        raise ReleaseError(f"nothing was ever released as {name}; run `darkroom release RECIPE --as {name}`")
    return changes


def check_version(name: str, version: str) -> None:
    """Refuse a version that is not registered, where the home proves it.

    Raises:
        ReleaseError: There is no such version.
    """
    registered = read_registered(load_settings(), name)
    if registered is not None and version not in (known := [one.version for one in registered]):
        raise ReleaseError(f"{name} has no version {version}; registered: {', '.join(known) or 'none'}")


def check_rollback(name: str, to: str | None, why: str) -> None:
    """Refuse a rollback that cannot be made, where the home proves it.

    Args:
        name: Registered name.
        to: Version; None for the champion before this one.
        why: Reason.

    Raises:
        ReleaseError: There is no such version.
        UsageError: It was never champion, and no reason is given.
    """
    if to is not None:
        check_version(name, to)
    changes = read_settled(load_settings(), name)
    if changes is None:
        return
    if to is not None:
        check_reason_given(name, to, why, changes)
    elif find_previous(changes) is None:
        raise no_previous(name, changes)


def check_reason_given(name: str, to: str, why: str, changes: tuple[Change, ...]) -> None:
    """Refuse to make a version champion that never was, unless a reason is given.

    Raises:
        UsageError: There is none.
    """
    if not why and to not in {change.to_version for change in changes}:
        raise UsageError(f'version {to} of {name} was never champion: give a reason for the ledger, --why "..."')


def no_previous(name: str, changes: tuple[Change, ...]) -> ReleaseError:
    """Return the error of a name that has nothing to go back to."""
    current = changes[-1].to_version if changes else None
    if current is None:
        return ReleaseError(f"{name} cannot go back: nothing was ever released as it; `darkroom models` lists what was")
    return ReleaseError(
        f"{name} cannot go back: before version {current} there is no champion that was not rolled back; "
        f"`darkroom history {name}` shows all, --to VERSION takes any"
    )


def _complete(settings: Settings, name: str) -> tuple[Change, ...]:
    from model_code.release.ledger import complete, find_champion
    from model_code.tracking.store import open_store

    client = open_store(settings)
    with hold_lock(settings.locks_dir / f"champion-{name}.lock", f"reading the history of {name}"):
        changes = complete(client, settings.bundles_dir, name)
        try:
            find_champion(client, name, changes)
        except ReleaseError as error:
            _log.warning("%s", error)
    return changes
