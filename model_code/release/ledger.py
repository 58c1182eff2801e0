"""The ledger: every move of the alias `champion`, appended to a file beside the bundles and written on the versions.

    bundles/<name>/ledger.jsonl         one `Change` per line, in order; lines are only ever added
    version tag mlflow.darkroom.change.<number>, which MLflow's pages do not show: the same on the version that became
                                        champion, to make the file anew from

How a move survives a kill between any two steps: the pointer carries its change and is replaced in one step, which is
the move. Alias, tag and line follow, the line last; `complete` does what is missing, and each later command begins
with it.
"""

import getpass
import logging
import os
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from model_code.disk import flush_folder, writing_to
from model_code.errors import ReleaseError, UsageError
from model_code.release.changes import LEDGER_FILE, TAG_PREFIX, list_change_tags, read_ledger
from model_code.release.versions import (
    fetch_bundle,
    get_challenger,
    get_champion,
    get_version,
    list_versions,
    set_challenger,
)
from serving.bundle.store import (
    BUNDLE_TAG,
    CHAMPION,
    MANIFEST_TAG,
    POINTER_FILE,
    SHARE_TAG,
    Change,
    Pointer,
    read_challenger,
    read_pointer,
    write_challenger,
    write_pointer,
)
from serving.errors import BundleError

LONGEST_REASON = 1000
_LONGEST_VERDICT = 4000

_log = logging.getLogger(__name__)


def move_champion(
    client: MlflowClient,
    bundles_dir: Path,
    name: str,
    *,
    action: Literal["promote", "rollback"],
    before: str | None,
    version: ModelVersion,
    why: str,
    verdict: str,
) -> Change:
    """Make a registered version the champion, and write down who did it and why.

    The caller holds the lock of the name, has called `complete`, and has the version's bundle here and checked.

    Args:
        client: Client of the registry.
        bundles_dir: Folder of bundles and pointers.
        name: Registered name.
        action: `promote` or `rollback`.
        before: Champion until now.
        version: Version that becomes champion.
        why: In words, as `check_reason` allows.
        verdict: Of the gate, or what was checked.

    Raises:
        ReleaseError: The version is champion, but the registry could not be told; or another home made another
            version the champion at the same moment.
    """
    change = Change(
        number=_count(read_ledger(bundles_dir, name)) + 1,
        action=action,
        from_version=before,
        to_version=str(version.version),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        by=f"{_read_user()}@{socket.gethostname()}",
        why=why,
        verdict=verdict[:_LONGEST_VERDICT],
    )
    _point(bundles_dir, version, change)
    try:
        last = complete(client, bundles_dir, name)[-1]
    except MlflowException as error:
        raise ReleaseError(
            f"version {change.to_version} of {name} is champion and served, but the registry could not be told "
            f"({error}); `darkroom history {name}` tells it"
        ) from error
    if last != change:
        raise ReleaseError(
            f"version {last.to_version} became champion of {name} ({last.action} by {last.by} at {last.at}) at the "
            f"same moment as version {change.to_version}, which did not; repeat the command"
        )
    return change


def end_challenge(client: MlflowClient, bundles_dir: Path, name: str, version: str | None = None) -> None:
    """Let a name have no challenger, here and in the registry.

    Args:
        client: Client of the registry.
        bundles_dir: Folder of bundles and pointers.
        name: Registered name.
        version: A new champion: only that version's challenge ends, and any canary, which was compared with the
            champion before. None ends every challenge.
    """
    if version is None:
        write_challenger(bundles_dir, name, None)
        set_challenger(client, name, None)
        return
    _end_local_challenge(bundles_dir, name, version)
    registered = get_challenger(client, name)
    if registered is not None and (SHARE_TAG in registered.tags or str(registered.version) == version):
        set_challenger(client, name, None)


def _end_local_challenge(bundles_dir: Path, name: str, version: str) -> None:
    try:
        challenger = read_challenger(bundles_dir, name)
    except BundleError:
        return
    if challenger.share or challenger.version == version:
        write_challenger(bundles_dir, name, None)


def check_reason(why: str) -> None:
    """Refuse a reason that the ledger cannot hold.

    Raises:
        UsageError: It is too long.
    """
    if len(why) > LONGEST_REASON:
        raise UsageError(f"a reason of {len(why)} characters; --why takes at most {LONGEST_REASON}")


def complete(client: MlflowClient, bundles_dir: Path, name: str) -> tuple[Change, ...]:
    """Do what is left of a move that was interrupted after its pointer was written; return the whole ledger.

    What other homes wrote into the same registry is added to the file here, and a pointer that is lost, damaged or
    behind the ledger is written anew. The caller holds the lock of the name.
    """
    changes, registered = read_ledger(bundles_dir, name), _read_tags(client, name)
    pointer = _find_pointer(bundles_dir, name)
    if pointer is not None and pointer.change.number > max(_count(changes), _count(registered)):
        known = [str(version.version) for version in list_versions(client, name)]
        if pointer.version not in known:
            raise ReleaseError(
                f"version {pointer.version} of {name} is served and not in the registry, which has {', '.join(known)}: "
                f"it was deleted there; remove {bundles_dir / name / POINTER_FILE} to go on with the ledger's champion"
            )
        client.set_registered_model_alias(name, CHAMPION, pointer.version)
        end_challenge(client, bundles_dir, name, pointer.version)
        tag = f"{TAG_PREFIX}{pointer.change.number}"
        client.set_model_version_tag(name, pointer.version, tag, pointer.change.model_dump_json())
        registered = (*registered, pointer.change)
    tagged = {change.number: change for change in registered}
    for change in changes:
        if tagged.get(change.number, change) != change:
            _log.warning("%s: line %d of %s is not what the registry has", name, change.number, LEDGER_FILE)
    missing = [change for change in registered if change.number > _count(changes)]
    if missing:
        _append(bundles_dir / name / LEDGER_FILE, missing)
    changes = (*changes, *missing)
    if changes and (pointer is None or pointer.change != changes[-1]):
        _heal_pointer(client, bundles_dir, name, changes[-1])
    return changes


def find_champion(client: MlflowClient, name: str, changes: tuple[Change, ...]) -> str | None:
    """Return the version that is champion; None before the first release.

    Args:
        client: Client of the registry.
        name: Registered name.
        changes: Result of `complete`.

    Raises:
        ReleaseError: The alias in the registry is not where the ledger's last change put it.
    """
    found = get_champion(client, name)
    alias = None if found is None else str(found.version)
    if changes and alias != changes[-1].to_version:
        raise ReleaseError(
            f"the registry says that {name}'s champion is {'no version' if alias is None else f'version {alias}'}, the "
            f"ledger says version {changes[-1].to_version}: the alias was moved by other means; `darkroom rollback "
            f"{name} --to VERSION` makes one of them the champion in both"
        )
    return alias


def _read_tags(client: MlflowClient, name: str) -> tuple[Change, ...]:
    """Return what the versions say, in order; of two homes' changes with one number the later one, in every home."""
    changes = [
        Change.model_validate_json(text)
        for version in list_versions(client, name)
        for text in list_change_tags(version.tags).values()
    ]
    by_number = {change.number: change for change in sorted(changes, key=lambda one: (one.at, one.to_version))}
    return tuple(change for _, change in sorted(by_number.items()))


def _find_pointer(bundles_dir: Path, name: str) -> Pointer | None:
    try:
        return read_pointer(bundles_dir, name)
    except BundleError:
        return None


def _heal_pointer(client: MlflowClient, bundles_dir: Path, name: str, last: Change) -> None:
    """Let the pointer follow the ledger; without the bundle it stays as it is, and whoever reads it says so."""
    try:
        version = get_version(client, name, last.to_version)
        fetch_bundle(client, bundles_dir, version)
    except ReleaseError as error:
        _log.warning("%s: the pointer does not follow the ledger's version %s: %s", name, last.to_version, error)
    else:
        _log.warning("%s: the pointer is written anew, for version %s", name, last.to_version)
        _point(bundles_dir, version, last)


def _point(bundles_dir: Path, version: ModelVersion, change: Change) -> None:
    pointer = Pointer(
        version=str(version.version),
        bundle=version.tags[BUNDLE_TAG],
        manifest_sha256=version.tags[MANIFEST_TAG],
        change=change,
    )
    with writing_to(bundles_dir, 0, f"pointing at version {version.version} of {version.name}"):
        write_pointer(bundles_dir, version.name, pointer)
        # At once: the registry may be away.
        _end_local_challenge(bundles_dir, version.name, pointer.version)


def _append(file: Path, changes: Sequence[Change]) -> None:
    """Add lines; a torn one before them, which was never complete, is cut off."""
    content = "".join(change.model_dump_json() + "\n" for change in changes).encode()
    with writing_to(file.parent, len(content), f"saving {file.name}"):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "r+b") as stream:
            whole = stream.read().rfind(b"\n") + 1
            stream.seek(whole)
            stream.truncate()
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        flush_folder(file.parent)


def _count(changes: tuple[Change, ...]) -> int:
    return changes[-1].number if changes else 0


def _read_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
