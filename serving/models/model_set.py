"""The released models that are loaded now, kept in step with the pointers under DARKROOM_HOME/bundles.

A new release is loaded and checked beside the one that serves, and takes over only when it works. Requests
that have started keep the classifier that they started with. The one before stays loaded, so that a rollback loads
nothing. A challenger, which gets shadow traffic, is loaded in the same way.
"""

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from serving.bundle.manifest import Manifest
from serving.bundle.store import (
    CHALLENGER_FILE,
    POINTER_FILE,
    BundleReference,
    ChallengerReference,
    list_released,
    read_bundle,
    read_challenger,
    read_pointer,
)
from serving.errors import BadParameterError, BundleError, NoModelError, NoSuchModelError
from serving.models.classifier import Classifier
from serving.models.predictions import ChallengerState, ModelProblem, ModelsAnswer
from serving.models.registry import RegistryFollower

DEFAULT_NAME = "cifar10"
# Beside the names of models among the problems.
REGISTRY_PROBLEM = "registry"
POLL_INTERVAL_S = 1.0
RETRY_INTERVAL_S = 10.0
START_WAIT_S = 10.0

logger = logging.getLogger(__name__)


def find_bundles_dir(home: Path | None = None) -> Path:
    """Return `bundles` under `home`, or under DARKROOM_HOME, `./.darkroom` when unset; absolute."""
    root = home or Path(os.environ.get("DARKROOM_HOME") or ".darkroom")
    return root.expanduser().resolve() / "bundles"


def find_inbox_dir(home: Path) -> Path:
    """Return where the service writes feedback and request log: DARKROOM_INBOX, `home` when unset; absolute."""
    return Path(os.environ.get("DARKROOM_INBOX") or home).expanduser().resolve()


_Signature = tuple[int, int, int]
# A name, and the file that points to one of its bundles.
_Slot = tuple[str, str]


@dataclass(frozen=True)
class _Challenger:
    classifier: Classifier
    share: float


@dataclass(frozen=True)
class _Failure:
    signature: _Signature
    message: str
    retry_at_s: float


class ModelSet:
    """Loaded models by registered name; reading is safe from any thread.

    Attributes:
        bundles_dir: Folder of the releases.
    """

    def __init__(
        self,
        bundles_dir: Path,
        threads: int | None = None,
        precision: str | None = None,
        requires_cuda: bool = False,
        registry: RegistryFollower | None = None,
        on_change: Callable[[ModelsAnswer], None] | None = None,
    ) -> None:
        """Start with nothing loaded.

        Args:
            bundles_dir: Folder of the releases.
            threads: CPU threads of one classification; all that this process may use when None.
            precision: The variant that is to answer; the fastest of each model when None.
            requires_cuda: Whether a model that would run on the CPU is refused.
            registry: Brings releases here; None where they are made on this machine.
            on_change: Told what is served after each `refresh` that changed it, and after the first.
        """
        self.bundles_dir = bundles_dir
        self._threads = threads
        self._precision = precision
        self._requires_cuda = requires_cuda
        self._registry = registry
        self._on_change = on_change
        self._told: ModelsAnswer | None = None
        # Replaced as a whole, never changed: readers need no lock.
        self._loaded: MappingProxyType[str, Classifier] = MappingProxyType({})
        self._challengers: MappingProxyType[str, _Challenger] = MappingProxyType({})
        self._failures: MappingProxyType[_Slot, _Failure] = MappingProxyType({})
        self._before: dict[str, Classifier] = {}
        self._signatures: dict[_Slot, _Signature] = {}
        self._refreshing = threading.Lock()
        self._stopping = threading.Event()
        self._first_look = threading.Event()
        self._registry_problems: dict[str, str] = {}
        self._watcher: threading.Thread | None = None
        self._follower: threading.Thread | None = None

    @property
    def is_alive(self) -> bool:
        """True unless a thread that follows the releases has ended, or the one that asks the registry hangs."""
        if self._stopping.is_set():
            return True
        is_hung = self._registry is not None and self._registry.is_hung
        return not is_hung and all(one is None or one.is_alive() for one in (self._watcher, self._follower))

    @property
    def names(self) -> list[str]:
        """Names that answer now, sorted."""
        return sorted(self._loaded)

    def describe(self) -> ModelsAnswer:
        """Return what `GET /v1/models` answers."""
        return ModelsAnswer(
            models=tuple(
                champion.describe().model_copy(update={"challenger": self.describe_challenger(champion)})
                for _, champion in sorted(self._loaded.items())
            ),
            problems=tuple(
                ModelProblem(name=name, message=message) for name, message in sorted(self._list_problems().items())
            ),
        )

    @property
    def champions(self) -> Mapping[str, Classifier]:
        """The loaded models by name, as they are at this moment."""
        return self._loaded

    def get_challenger(self, name: str) -> Classifier | None:
        """Return the loaded challenger of a name, or None."""
        challenger = self._challengers.get(name)
        return None if challenger is None else challenger.classifier

    def get_canary(self, name: str) -> Classifier | None:
        """Return the challenger of a name that answers a share of the requests, or None."""
        challenger = self._challengers.get(name)
        return challenger.classifier if challenger is not None and challenger.share else None

    def draw(self, champion: Classifier) -> Classifier:
        """Return the model that answers a request to a champion: its canary in its share of the cases."""
        challenger = self._challengers.get(champion.manifest.name)
        # Drawn anew for each request: so nothing but the version tells the requests of the two apart.
        if challenger is None or random.random() >= challenger.share:  # noqa: S311
            return champion
        # Between the release of a champion of other classes and the end of its canary.
        is_alike = challenger.classifier.manifest.classes == champion.manifest.classes
        return challenger.classifier if is_alike else champion

    def describe_challenger(self, champion: Classifier) -> ChallengerState | None:
        """Return what `GET /v1/models` says about a champion's challenger, before anything is compared."""
        challenger = self._challengers.get(champion.manifest.name)
        if challenger is None:
            return None
        loaded = challenger.classifier
        return ChallengerState(**loaded.identity.model_dump(), provider=loaded.provider, share=challenger.share)

    def select(self, name: str | None) -> Classifier:
        """Return the model of that name; without a name, the only one, or `cifar10` among several.

        Raises:
            NoSuchModelError: No model of that name is loaded.
            BadParameterError: No name was given and it is not clear which model is meant.
            NoModelError: No name was given and nothing is loaded yet.
        """
        loaded = self._loaded
        names = ", ".join(sorted(loaded)) or "none"
        if name is not None:
            if name not in loaded:
                raise NoSuchModelError(f"no model {name!r} is loaded; loaded: {names}")
            return loaded[name]
        if len(loaded) == 1:
            return next(iter(loaded.values()))
        if DEFAULT_NAME in loaded:
            return loaded[DEFAULT_NAME]
        if not loaded:
            raise NoModelError(
                "no model is loaded yet: GET /v1/models says why, or that nothing is released", retry_after_s=5
            )
        raise BadParameterError(
            f"several models are loaded: name one with the parameter model (`--model NAME`); loaded: {names}"
        )

    def refresh(self) -> None:
        """Load what was released since the last call, drop what was withdrawn, keep what works."""
        with self._refreshing:
            # A folder that is gone is a volume that is not mounted, not a withdrawal of everything.
            if self.bundles_dir.is_dir():
                self._refresh()
            self._registry_problems = self._read_registry_problems()
            answer = self.describe()
            if self._on_change is not None and answer != self._told:
                self._on_change(answer)
                self._told = answer

    def watch(self, interval_s: float = POLL_INTERVAL_S) -> None:
        """Call `refresh` every `interval_s` seconds in a thread, until `stop`; follow the registry in another.

        Nothing waits for the registry, except here, where nothing is released yet: for its first answer, for a while.
        """
        if self._registry is not None:
            self._follower = threading.Thread(target=self._follow, args=(self._registry,), name="registry", daemon=True)
            self._follower.start()
            if not self.names:
                self._first_look.wait(START_WAIT_S)
                self.refresh()
        self._watcher = threading.Thread(target=self._poll, args=(interval_s,), name="releases", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """End the watching thread; the one that asks the registry ends with the process, whatever it waits for."""
        self._stopping.set()
        if self._watcher:
            self._watcher.join(timeout=5)

    def _follow(self, registry: RegistryFollower) -> None:
        while not self._stopping.is_set():
            try:
                registry.sync({name for name, _ in self._failures})
            except Exception:
                # As below: the thread must outlive what nobody foresaw.
                logger.exception("following the registry failed; it goes on")
            self._first_look.set()
            self._stopping.wait(POLL_INTERVAL_S)

    def _poll(self, interval_s: float) -> None:
        while not self._stopping.wait(interval_s):
            try:
                self.refresh()
            except OSError as error:
                logger.warning("cannot read %s: %s", self.bundles_dir, error)
            except Exception:
                # The thread must outlive what nobody foresaw: without it no release is followed any more.
                logger.exception("following the releases failed; it goes on")

    def _read_registry_problems(self) -> dict[str, str]:
        """Return what is wrong with the registry now; `refresh` shows it together with the figures that follow it."""
        if self._registry is None:
            return {}
        problems = dict(self._registry.failures)
        if self._registry.problem:
            problems[REGISTRY_PROBLEM] = self._registry.problem
        elif not (self._loaded or self._first_look.is_set()):
            problems[REGISTRY_PROBLEM] = f"the registry {self._registry.address} has not answered yet"
        return problems

    def _list_problems(self) -> dict[str, str]:
        problems = {
            name if file == POINTER_FILE else f"{name} (challenger)": failure.message
            for (name, file), failure in self._failures.items()
        }
        return problems | self._registry_problems

    def _refresh(self) -> None:
        released = list_released(self.bundles_dir)
        champions, challengers, failures = dict(self._loaded), dict(self._challengers), dict(self._failures)
        challenging = [name for name in released if (self.bundles_dir / name / CHALLENGER_FILE).exists()]
        slots = [(name, POINTER_FILE) for name in released] + [(name, CHALLENGER_FILE) for name in challenging]
        for slot in set(self._signatures).union(failures).difference(slots):
            name, file = slot
            logger.info("%s is withdrawn", name if file == POINTER_FILE else f"the challenger of {name}")
            for known in (champions, self._before) if file == POINTER_FILE else (challengers,):
                known.pop(name, None)
            failures.pop(slot, None)
            self._signatures.pop(slot, None)
        # At once, here and below: other models may take long to load.
        self._loaded, self._challengers = MappingProxyType(dict(champions)), MappingProxyType(dict(challengers))
        for slot in slots:
            name, file = slot
            signature = self._read_signature(slot)
            if signature == self._signatures.get(slot):
                continue
            failure = failures.get(slot)
            if failure and failure.signature == signature and time.monotonic() < failure.retry_at_s:
                continue
            try:
                reference, classifier = self._load(slot, champions.get(name))
            except Exception as error:  # also one that nobody foresaw: the other models are loaded
                is_foreseen = isinstance(error, BundleError | OSError)
                message = str(error) if is_foreseen else f"{type(error).__name__}: {error}"
                if not failure or failure.message != message:
                    logger.warning("%s: not loaded: %s", name, message, exc_info=not is_foreseen)
                failures[slot] = _Failure(signature, message, time.monotonic() + RETRY_INTERVAL_S)
                if file == CHALLENGER_FILE:
                    # The champion answers as before; a canary that is not wanted any more does not.
                    challengers.pop(name, None)
                    self._challengers = MappingProxyType(dict(challengers))
                continue
            if isinstance(reference, ChallengerReference):
                challengers[name] = _Challenger(classifier, reference.share)
            else:
                if champions.get(name) not in (None, classifier):
                    self._before[name] = champions[name]
                champions[name] = classifier
                self._signatures.pop((name, CHALLENGER_FILE), None)  # to be compared with this champion
            failures.pop(slot, None)
            self._signatures[slot] = signature
            what = "version" if file == POINTER_FILE else "challenger version"
            logger.info("%s: %s %s is loaded, %s", name, what, classifier.version, classifier.choice)
            self._loaded, self._challengers = MappingProxyType(dict(champions)), MappingProxyType(dict(challengers))
        self._failures = MappingProxyType(failures)

    def _load(self, slot: _Slot, champion: Classifier | None) -> tuple[BundleReference, Classifier]:
        name, file = slot
        if file == POINTER_FILE:
            pointer = read_pointer(self.bundles_dir, name)
            return pointer, self._open(name, pointer)
        reference = read_challenger(self.bundles_dir, name)
        if reference.share and champion is not None:
            # Not opened first: that takes every processor for a moment, each time that a refused one is tried again.
            manifest = read_bundle(self.bundles_dir / name / reference.bundle, reference.manifest_sha256)
            _check_canary(reference.version, manifest, champion.manifest)
        return reference, self._open(name, reference)

    def _open(self, name: str, pointer: BundleReference) -> Classifier:
        folder = self.bundles_dir / name / pointer.bundle
        for known in (self._before.get(name), self.get_challenger(name), self._loaded.get(name)):
            # It was verified when it was loaded, and does not change in memory.
            if known is not None and known.is_from(folder, pointer.version, pointer.manifest_sha256):
                return known
        classifier = Classifier(
            folder,
            pointer.version,
            self._threads,
            precision=self._precision,
            requires_cuda=self._requires_cuda,
            manifest_sha256=pointer.manifest_sha256,
        )
        if classifier.manifest.name != name:
            raise BundleError(
                f"the bundle released as {name} says it is {classifier.manifest.name}; "
                f"run `darkroom release RECIPE --as {name}`"
            )
        return classifier

    def _read_signature(self, slot: _Slot) -> _Signature:
        name, file = slot
        try:
            status = (self.bundles_dir / name / file).stat()
        except OSError:
            return (0, 0, 0)
        return (status.st_mtime_ns, status.st_ino, status.st_size)


def _check_canary(version: str, canary: Manifest, champion: Manifest) -> None:
    """Refuse a canary that cannot answer in the champion's place.

    Raises:
        BundleError: Its classes are not the champion's.
    """
    if canary.classes != champion.classes:
        raise BundleError(
            f"version {version} has other classes than the champion and cannot answer in its place; "
            f"`darkroom canary {champion.name} --none` ends that"
        )
