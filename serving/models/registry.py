"""The bundles of a service that follows an MLflow registry: champions and challengers are fetched when they change.

What is fetched is verified against the sha256 in the registry, which `registry_client.py` asks, and then lies under
DARKROOM_HOME/bundles like any release: without the registry the service goes on with that.
"""

import logging
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from serving.bundle.manifest import FILE_NAME
from serving.bundle.store import (
    BUNDLE_TAG,
    CHALLENGER,
    CHAMPION,
    MANIFEST_TAG,
    SHARE_TAG,
    BundleReference,
    ChallengerReference,
    Change,
    Pointer,
    list_released,
    read_bundle,
    read_challenger,
    read_pointer,
    write_bundle,
    write_challenger,
    write_pointer,
)
from serving.errors import BundleError, RegistryError
from serving.heartbeat import Heartbeat
from serving.models.registry_client import MAX_FETCH_S, RegistryClient

POLL_INTERVAL_S = 5.0
# An answer has 10 s and a connection 3 s; each piece of a file that is read or fetched is progress.
_HUNG_S = 14.0
MAX_VERSION_BYTES = 4_000_000_000
# After a version that could not be fetched; doubled with each further failure.
FIRST_RETRY_S, LAST_RETRY_S = 10.0, 600.0
_SCRATCH_PREFIX = ".fetched-"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Retry:
    version: str | None
    at_s: float
    wait_s: float


class RegistryFollower:
    """Keeps DARKROOM_HOME/bundles in step with the aliases of an MLflow registry; used from one thread.

    The folder belongs to this service alone: on the machine that releases, the releases are here already.

    Attributes:
        address: Address of the MLflow server.
        problem: Why the registry could not be asked the last time; empty if it could.
        failures: Why a version could not be fetched, by its name, or `NAME (challenger)`; replaced, never changed.
    """

    def __init__(self, address: str, bundles_dir: Path, interval_s: float = POLL_INTERVAL_S) -> None:
        """Ask nothing yet.

        Args:
            address: Address of the MLflow server, as `RegistryClient` takes it.
            bundles_dir: Folder of the bundles.
            interval_s: Least time between two questions.
        """
        self.address = address.rstrip("/")
        self.problem = ""
        self.failures: dict[str, str] = {}
        self._retries: dict[str, _Retry] = {}
        self._bundles_dir = bundles_dir
        self._interval_s = interval_s
        self._next_s = 0.0
        self._heartbeat = Heartbeat(_HUNG_S)

    @property
    def is_hung(self) -> bool:
        """True if a look at the registry has made no progress for longer than an answer may take."""
        return self._heartbeat.is_hung

    def sync(self, damaged: Collection[str] = ()) -> None:
        """Fetch what the aliases mean now, if it is time to ask; what cannot be had leaves everything as it was.

        Args:
            damaged: Names whose bundle here did not load: they are verified, and fetched again if need be.
        """
        if time.monotonic() < self._next_s:
            return
        with self._heartbeat.work():
            self._sync(damaged)

    def _sync(self, damaged: Collection[str]) -> None:
        try:
            self._remove_stale()
            served = set(list_released(self._bundles_dir)) if self._bundles_dir.is_dir() else set()
            with RegistryClient(self.address, self._heartbeat.beat) as client:
                for name, aliases in client.list_names().items():
                    if CHAMPION in aliases or name in served:
                        self._follow(client, name, aliases, name in damaged)
            problem = ""
        except (RegistryError, OSError) as error:
            problem = str(error)
        if problem and problem != self.problem:
            logger.warning("the models stay as they are: %s", problem)
        if self.problem and not problem:
            logger.info("%s answers again", self.address)
        self.problem = problem
        self._next_s = time.monotonic() + self._interval_s

    def _follow(self, client: RegistryClient, name: str, aliases: dict[str, str], is_damaged: bool) -> None:
        for alias, what in ((CHAMPION, name), (CHALLENGER, f"{name} ({CHALLENGER})")):
            version = aliases.get(alias)
            retry = self._retries.get(what)
            if retry is not None and retry.version == version and time.monotonic() < retry.at_s:
                continue
            try:
                self._point(client, name, alias, version, is_damaged)
                self.failures = {key: value for key, value in self.failures.items() if key != what}
                self._retries.pop(what, None)
            except (BundleError, RegistryError, OSError) as error:
                if self.failures.get(what) != str(error):
                    logger.warning("%s: version %s is not fetched: %s", what, version, error)
                self.failures = {**self.failures, what: str(error)}
                is_again = retry is not None and retry.version == version
                wait_s = min(2 * retry.wait_s, LAST_RETRY_S) if retry is not None and is_again else FIRST_RETRY_S
                self._retries[what] = _Retry(version, time.monotonic() + wait_s, wait_s)

    def _point(self, client: RegistryClient, name: str, alias: str, version: str | None, is_damaged: bool) -> None:
        """Make what an alias means known here; a champion that lost its alias stays."""
        known = self._read_known(name, alias)
        if version is None:
            if alias == CHALLENGER and known is not None:
                write_challenger(self._bundles_dir, name, None)
            return
        if not re.fullmatch(r"\d{1,18}", version):
            raise RegistryError(f"{name} has the version {version[:40]!r}; MLflow counts them")
        tags = client.read_tags(name, version)
        bundle, manifest_sha256 = tags.get(BUNDLE_TAG, ""), tags.get(MANIFEST_TAG, "")
        if not (re.fullmatch(FILE_NAME, bundle) and manifest_sha256):
            raise RegistryError(f"version {version} of {name} was not registered by Darkroom; release its run again")
        fields = {"version": version, "bundle": bundle, "manifest_sha256": manifest_sha256}
        wanted = BundleReference(**fields)
        if alias == CHALLENGER:
            wanted = ChallengerReference(**fields, share=_read_share(name, version, tags))
        if isinstance(known, ChallengerReference):
            known = known.model_copy(update={"since": ""})  # the registry does not tell it
        is_known = known == wanted
        if is_known and not is_damaged:
            return
        self._fetch(client, name, wanted)
        if is_known:
            return
        if isinstance(wanted, ChallengerReference):
            since = datetime.now(UTC).isoformat(timespec="milliseconds") if wanted.share else ""
            write_challenger(self._bundles_dir, name, wanted.model_copy(update={"since": since}))
            return
        change = Change(
            number=1,
            action="promote",
            from_version=None if known is None else known.version,
            to_version=version,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            by=self.address,
            why=f"the alias {CHAMPION} in the registry",
            verdict="sha256 verified",
        )
        write_pointer(self._bundles_dir, name, Pointer(**wanted.model_dump(), change=change))

    def _read_known(self, name: str, alias: str) -> BundleReference | None:
        """Return what this alias means here; None if that is nothing."""
        try:
            if alias == CHALLENGER:
                return read_challenger(self._bundles_dir, name)
            pointer = read_pointer(self._bundles_dir, name)
            return BundleReference(**pointer.model_dump(include=set(BundleReference.model_fields)))
        except BundleError:
            return None

    def _fetch(self, client: RegistryClient, name: str, wanted: BundleReference) -> None:
        """Copy a version's bundle here, verified, unless it is here."""
        try:
            read_bundle(self._bundles_dir / name / wanted.bundle, wanted.manifest_sha256, self._heartbeat.beat)
        except BundleError:
            self._bundles_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=_SCRATCH_PREFIX, dir=self._bundles_dir.parent) as scratch:
                self._download(client, name, wanted.version, Path(scratch))
                try:
                    manifest = read_bundle(Path(scratch), wanted.manifest_sha256, self._heartbeat.beat)
                except BundleError as error:
                    raise BundleError(str(error).replace(scratch, "the version in the registry")) from None
                if manifest.name != name:
                    raise BundleError(f"version {wanted.version} of {name} holds {manifest.name}") from None
                write_bundle(self._bundles_dir, Path(scratch), {wanted.manifest_sha256}, wanted.bundle)
                logger.info("%s: version %s was fetched from %s", name, wanted.version, self.address)

    def _download(self, client: RegistryClient, name: str, version: str, folder: Path) -> None:
        left_bytes, end_s = MAX_VERSION_BYTES, time.monotonic() + MAX_FETCH_S
        for path in client.list_files(name, version):
            if re.fullmatch(FILE_NAME, path.name):
                with (folder / path.name).open("wb") as file:
                    left_bytes -= client.download(path, file, left_bytes, end_s - time.monotonic())

    def _remove_stale(self) -> None:
        """Remove what a fetch left behind that was killed."""
        for stale in self._bundles_dir.parent.glob(f"{_SCRATCH_PREFIX}*"):
            shutil.rmtree(stale, ignore_errors=True)


def _read_share(name: str, version: str, tags: Mapping[str, str]) -> float:
    """Return the share of the requests that a challenger answers."""
    text = tags.get(SHARE_TAG, "0")
    with suppress(ValueError):
        if 0 <= (share := float(text)) <= 1:
            return share
    raise RegistryError(f"version {version} of {name} has the tag {SHARE_TAG}={text[:40]!r}; a share is from 0 to 1")
