"""Shadow traffic for a registered version, or a share of the requests to answer."""

from datetime import UTC, datetime
from pathlib import Path

from model_code.disk import hold_lock
from model_code.errors import ReleaseError
from model_code.release.changes import refuse_champion
from model_code.release.ledger import end_challenge
from model_code.release.names import check_release_name
from model_code.release.versions import fetch_bundle, get_version, set_challenger
from model_code.settings import load_settings
from model_code.tracking.store import open_store
from serving.bundle.store import (
    MANIFEST_TAG,
    ChallengerReference,
    read_bundle,
    read_challenger,
    read_pointer,
    write_challenger,
)
from serving.errors import BundleError


def challenge(name: str, version: str | None, share: float = 0.0) -> None:
    """Make a version the challenger of `name`, or end what there is; running services follow within seconds.

    Args:
        name: Registered name, which has a champion.
        version: In the registry; None for no challenger.
        share: Share of the requests that it answers in the champion's place, in [0, 1]; 0 for shadow traffic only.

    Raises:
        ReleaseError: There is no such version, it is the champion, its bundle does not verify, or it is to answer
            requests and has other classes than the champion.
        BundleError: Nothing is released under that name.
    """
    check_release_name(name)
    settings = load_settings()
    client = open_store(settings)
    with hold_lock(settings.locks_dir / f"champion-{name}.lock", f"setting the challenger of {name}"):
        champion = read_pointer(settings.bundles_dir, name)
        if version is None:
            end_challenge(client, settings.bundles_dir, name)
            return
        if version == champion.version:
            raise refuse_champion(name, version)
        registered = get_version(client, name, version)
        folder = fetch_bundle(client, settings.bundles_dir, registered)
        if share and read_bundle(folder).classes != read_bundle(settings.bundles_dir / name / champion.bundle).classes:
            raise ReleaseError(
                f"version {version} of {name} has other classes than the champion, version {champion.version}; it can "
                f"get shadow traffic: darkroom challenge {name} {version}"
            )
        reference = ChallengerReference(
            version=version, bundle=folder.name, manifest_sha256=registered.tags[MANIFEST_TAG], share=share
        )
        if share:
            reference = reference.model_copy(update={"since": _find_begin(settings.bundles_dir, name, reference)})
        write_challenger(settings.bundles_dir, name, reference)
        set_challenger(client, name, version, share)


def _find_begin(bundles_dir: Path, name: str, canary: ChallengerReference) -> str:
    """Return when a canary began with its share: now, unless it is set again as it is."""
    try:
        known = read_challenger(bundles_dir, name)
    except BundleError:
        known = None
    if known is not None and known.since and known.model_copy(update={"since": ""}) == canary:
        return known.since
    return datetime.now(UTC).isoformat(timespec="milliseconds")
