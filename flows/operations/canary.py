"""A canary beside the champion: how many of its answers people corrected, and what follows from that.

Who answers is drawn for each request, so a request is what the test draws anew. An image counts with the first logged
answer: sent again, it may be answered by the other version too.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from model_code.disk import hold_lock
from model_code.errors import ReleaseError
from model_code.release.names import check_release_name
from model_code.settings import Settings, load_settings
from serving.bundle.store import MANIFEST_TAG, ChallengerReference, read_challenger, read_pointer
from serving.observation.feedback import FeedbackStore
from serving.observation.request_log import REQUESTS_FOLDER
from serving.observation.review import LoggedAnswer, read_answers

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from mlflow import MlflowClient

SIGNIFICANCE = 0.05
DRAWS, DRAWS_AT_ONCE = 20_000, 1_000
_SEED = 20_260_101

Decision = Literal["promote", "withdraw", "wait"]
# (images, corrected images) of a request -> number of such requests.
RequestKinds = Counter[tuple[int, int]]


@dataclass(frozen=True)
class Answers:
    """Logged answers of a version since the canary began.

    Attributes:
        version: Version in the registry.
        requests: Requests with an image that was answered for the first time.
        images: Images that were answered for the first time.
        labelled: Images with a true label.
        corrected: Images whose true label differs from the answer.
    """

    version: str
    requests: int
    images: int
    labelled: int
    corrected: int

    @property
    def corrected_fraction(self) -> float | None:
        """Share of the images that was corrected; None without images."""
        return self.corrected / self.images if self.images else None

    def __str__(self) -> str:
        return f"version {self.version}: {self.corrected:,} of {self.images:,} images corrected"


@dataclass(frozen=True)
class CanaryComparison:
    """A canary beside the champion.

    Attributes:
        name: Registered name.
        share: Share of the requests that the canary answers.
        since: Begin of the comparison, ISO 8601 time in UTC.
        champion: Answers of the champion.
        canary: Answers of the canary.
        p_value: Two-sided p-value of the difference between the corrected fractions.
    """

    name: str
    share: float
    since: str
    champion: Answers
    canary: Answers
    p_value: float

    @property
    def decision(self) -> Decision:
        """`promote` or `withdraw` where the difference is significant, else `wait`."""
        if self.p_value >= SIGNIFICANCE:
            return "wait"
        is_better = self.canary.corrected * self.champion.images < self.champion.corrected * self.canary.images
        return "promote" if is_better else "withdraw"

    def __str__(self) -> str:
        return f"canary {self.canary}; champion {self.champion}; p = {self.p_value:.3g}"


def compare_canary(name: str) -> CanaryComparison:
    """Compare a name's canary with the champion.

    Raises:
        BundleError: Nothing is released under that name, or it has no challenger.
        ReleaseError: Its challenger gets shadow traffic only, or is the champion.
    """
    check_release_name(name)
    return _compare(load_settings(), name, _read_canary(load_settings(), name))


def decide_canary(name: str) -> CanaryComparison:
    """Promote or withdraw a name's canary, or let it wait.

    Raises:
        BundleError: As `compare_canary`.
        ReleaseError: As `compare_canary`; or champion or canary were moved meanwhile or by other means, or the canary's
            bundle does not verify; nothing changes.
    """
    from model_code.release.ledger import complete, end_challenge, find_champion
    from model_code.tracking.store import open_store

    check_release_name(name)
    settings = load_settings()
    canary = _read_canary(settings, name)
    comparison = _compare(settings, name, canary)
    if comparison.decision == "wait":
        return comparison
    client = open_store(settings)
    with hold_lock(settings.locks_dir / f"champion-{name}.lock", f"deciding on the canary of {name}"):
        changes = complete(client, settings.bundles_dir, name)
        find_champion(client, name, changes)
        if changes[-1].to_version != comparison.champion.version or _read_canary(settings, name) != canary:
            raise ReleaseError(f"champion or canary of {name} were moved while they were compared; repeat the command")
        if comparison.decision == "promote":
            _promote(client, settings.bundles_dir, comparison)
        else:
            end_challenge(client, settings.bundles_dir, name)
    return comparison


def _promote(client: "MlflowClient", bundles_dir: Path, comparison: CanaryComparison) -> None:
    from model_code.release.ledger import move_champion
    from model_code.release.versions import fetch_bundle, get_version
    from serving.models.classifier import Classifier

    name, version = comparison.name, get_version(client, comparison.name, comparison.canary.version)
    folder = fetch_bundle(client, bundles_dir, version)
    Classifier(folder, comparison.canary.version, manifest_sha256=version.tags[MANIFEST_TAG])
    move_champion(
        client,
        bundles_dir,
        name,
        action="promote",
        before=comparison.champion.version,
        version=version,
        why=f"darkroom canary {name} --decide",
        verdict=f"{comparison}: promoted",
    )


def _read_canary(settings: Settings, name: str) -> ChallengerReference:
    champion, canary = read_pointer(settings.bundles_dir, name), read_challenger(settings.bundles_dir, name)
    if canary.version == champion.version:
        raise ReleaseError(
            f"version {canary.version} of {name} is champion already; end the canary: darkroom canary {name} --none"
        )
    if not canary.share:
        raise ReleaseError(
            f"version {canary.version}, the challenger of {name}, gets shadow traffic only; to let it answer requests: "
            f"darkroom canary {name} {canary.version} --share 0.1"
        )
    return canary


def _compare(settings: Settings, name: str, canary: ChallengerReference) -> CanaryComparison:
    pointer = read_pointer(settings.bundles_dir, name)
    folder = settings.feedback_dir.parent / REQUESTS_FOLDER
    versions = (pointer.version, canary.version)
    # The canary may have been loaded later than it was set: before, all requests were the champion's.
    since = max(canary.since, pointer.change.at)
    by_canary = (one.time for one in _read_since(folder, name, since) if one.version == canary.version)
    since = next(by_canary, since)
    found: dict[str, LoggedAnswer] = {}
    for answer in _read_since(folder, name, since):
        if answer.version in versions:
            found.setdefault(answer.picture_sha256, answer)
    labels = FeedbackStore(settings.feedback_dir).list_labels(name)
    (champion, champion_kinds), (other, canary_kinds) = (
        _summarise(version, found.values(), labels) for version in versions
    )
    return CanaryComparison(name, canary.share, since, champion, other, compute_p_value(champion_kinds, canary_kinds))


def _read_since(folder: Path, name: str, since: str) -> Iterator[LoggedAnswer]:
    """Yield a name's logged answers since a time to requests that any version might have answered.

    Raises:
        ReleaseError: A file cannot be read.
    """
    for file in sorted(folder.glob("*.jsonl")):
        if file.stem < since[:10]:
            continue
        try:
            yield from (one for one in read_answers(file) if one.model == name and one.is_drawn and one.time >= since)
        except OSError as error:
            raise ReleaseError(
                f"{file} cannot be read ({error.strerror}); without it the comparison would be another one"
            ) from error


def _summarise(version: str, found: Iterable[LoggedAnswer], labels: dict[str, str]) -> tuple[Answers, RequestKinds]:
    images: dict[str, int] = defaultdict(int)
    corrected: dict[str, int] = defaultdict(int)
    labelled = 0
    for answer in found:
        if answer.version == version:
            # Logs of earlier versions do not tell requests apart.
            request = answer.request or answer.picture_sha256
            images[request] += 1
            labelled += answer.picture_sha256 in labels
            corrected[request] += labels.get(answer.picture_sha256, answer.label) != answer.label
    kinds = RequestKinds((count, corrected[request]) for request, count in images.items())
    return Answers(version, len(images), sum(images.values()), labelled, sum(corrected.values())), kinds


def compute_p_value(champion: RequestKinds, canary: RequestKinds) -> float:
    """Return the two-sided p-value of the difference between two corrected fractions; 1 where one has no images.

    A permutation test over requests, whose images need not be independent: which version answers is drawn anew, as
    often as the canary answered. With one image in each request it is close to Fisher's exact test.

    Args:
        champion: Requests that the champion answered.
        canary: Requests that the canary answered.
    """
    import numpy as np

    if not (champion and canary):
        return 1.0
    kinds = sorted(champion.keys() | canary.keys())
    counts_K = np.array([champion[kind] + canary[kind] for kind in kinds])
    images_K, corrected_K = np.array(kinds).T
    generator = np.random.default_rng(_SEED)

    def measure(drawn: "npt.NDArray[np.int64]") -> "npt.NDArray[np.float64]":
        rest = counts_K - drawn
        by_canary, by_champion = drawn @ corrected_K / (drawn @ images_K), rest @ corrected_K / (rest @ images_K)
        difference: npt.NDArray[np.float64] = np.abs(by_canary - by_champion)
        return difference

    observed = measure(np.array([canary[kind] for kind in kinds]))
    # Sums in another order must not make an equal difference a smaller one. The observed draw counts as one of them.
    extreme = 1
    for _ in range(DRAWS // DRAWS_AT_ONCE):
        draws_DK = generator.multivariate_hypergeometric(counts_K, canary.total(), DRAWS_AT_ONCE)
        extreme += int((measure(draws_DK) >= observed - 1e-12).sum())
    return extreme / (DRAWS + 1)
