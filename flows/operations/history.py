"""History of a name: every move of its champion. MLflow is asked only where the home does not prove them."""

import logging
from collections.abc import Sequence

from model_code.disk import hold_lock
from model_code.errors import ReleaseError, UsageError
from model_code.hints import suggest
from model_code.release.changes import find_previous, read_settled, refuse_champion
from model_code.release.registered import RegisteredVersion, read_registered
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
        raise nothing_registered(settings, name)
    return changes


def nothing_registered(settings: Settings, name: str) -> ReleaseError:
    """Return the error of a name that has no version, or none that was ever champion."""
    known = {one.name for one in read_registered(settings) or ()}
    if name in known:
        return ReleaseError(f"{name} has no champion yet; release a run: darkroom release RECIPE --as {name}")
    hint = suggest(name, known=known)
    return ReleaseError(
        f"nothing is registered as {name}; {hint or f'release a run: darkroom release RECIPE --as {name}'}".rstrip()
    )


def find_version(
    settings: Settings, name: str, number: str, versions: Sequence[RegisteredVersion]
) -> RegisteredVersion:
    """Return a version of a name.

    Args:
        settings: Places of the home.
        name: Registered name.
        number: Version.
        versions: Registered versions of the name.

    Raises:
        ReleaseError: There is no such version.
    """
    if not versions:
        raise nothing_registered(settings, name)
    found = next((one for one in versions if one.version == number), None)
    if found is None:
        raise ReleaseError(f"{name} has no version {number}; registered: {', '.join(one.version for one in versions)}")
    return found


def check_version(name: str, version: str) -> None:
    """Refuse a version that is not registered, where the home proves it.

    Raises:
        ReleaseError: There is no such version.
    """
    settings = load_settings()
    if (versions := read_registered(settings, name)) is not None:
        find_version(settings, name, version, versions)


def check_challenger(name: str, version: str) -> None:
    """Refuse a challenger that is not registered, or is the champion, where the home proves it.

    Raises:
        ReleaseError: There is no such version, or it is the champion.
    """
    check_version(name, version)
    changes = read_settled(load_settings(), name)
    if changes and changes[-1].to_version == version:
        raise refuse_champion(name, version)


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
    if not changes:
        return nothing_registered(load_settings(), name)
    current = changes[-1].to_version
    return ReleaseError(
        f"{name} cannot go back: every champion before version {current} was rolled back, or there was none; "
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
