"""Undoing a release: the champion before takes over again, once its bundle is proven intact.

No Prefect here: who undoes a release is in a hurry.
"""

from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from flows.operations.history import check_reason_given, no_previous
from model_code.disk import hold_lock
from model_code.errors import ReleaseError
from model_code.release.changes import find_previous
from model_code.release.ledger import check_reason, complete, find_champion, move_champion
from model_code.release.names import check_release_name
from model_code.release.versions import fetch_bundle, get_champion, get_version
from model_code.settings import load_settings
from model_code.tracking.store import open_store
from serving.bundle.store import BUNDLE_TAG, MANIFEST_TAG, Change, read_bundle
from serving.errors import BundleError
from serving.models.classifier import Classifier


def roll_back(name: str, to: str | None = None, why: str = "") -> Change:
    """Make an earlier version of `name` the champion; running services follow within seconds.

    Args:
        name: Registered name.
        to: Version; the champion before this one when None.
        why: For the ledger.

    Returns:
        The move; the last one, if the champion is meant and only its damaged bundle had to be fetched anew.

    Raises:
        ReleaseError: There is nothing to go back to, or the bundle of that version does not verify; nothing changes.
        UsageError: A version that was never champion needs a reason.
    """
    check_release_name(name)
    check_reason(why)
    settings = load_settings()
    client = open_store(settings)
    with hold_lock(settings.locks_dir / f"champion-{name}.lock", f"rolling {name} back"):
        changes = complete(client, settings.bundles_dir, name)
        current = changes[-1].to_version if changes else None
        if to is None:
            find_champion(client, name, changes)
        target = to or find_previous(changes)
        if target is None:
            raise no_previous(name, changes)
        version = get_version(client, name, target)
        champion = get_champion(client, name)
        if target == current and champion is not None and str(champion.version) == target:
            return _repair(client, settings.bundles_dir, version, changes[-1])
        check_reason_given(name, target, why, changes)
        folder = fetch_bundle(client, settings.bundles_dir, version)
        classifier = Classifier(folder, target, manifest_sha256=version.tags[MANIFEST_TAG])
        return move_champion(
            client,
            settings.bundles_dir,
            name,
            action="rollback",
            before=current,
            version=version,
            why=why or "no reason given",
            verdict=f"{len(classifier.manifest.files) + 1} files verified; {classifier.choice}",
        )


def _repair(client: MlflowClient, bundles_dir: Path, version: ModelVersion, last: Change) -> Change:
    """Fetch the champion's bundle anew if it is damaged; there is nothing else to do for a version that is champion."""
    try:
        read_bundle(bundles_dir / version.name / version.tags.get(BUNDLE_TAG, ""), version.tags.get(MANIFEST_TAG))
    except BundleError as problem:
        fetch_bundle(client, bundles_dir, version)
        return last.model_copy(update={"verdict": f"its bundle is fetched from the registry: {problem}"})
    raise ReleaseError(
        f"version {version.version} of {version.name} is champion already; `darkroom history {version.name}` shows all"
    )
