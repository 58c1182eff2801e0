"""A canary's trial: how often people corrected what it answered, beside what the champion answered meanwhile.

Who answers is drawn for each request, so nothing but the version tells the images of the two apart. The share of them
that people gave another label is then comparable, also where only mistakes are labelled.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from model_code.disk import hold_lock
from model_code.errors import ReleaseError
from model_code.release.challenge import challenge
from model_code.release.ledger import complete, move_champion
from model_code.release.names import check_release_name
from model_code.release.versions import get_version
from model_code.settings import Settings, load_settings
from model_code.tracking.store import open_store
from serving.bundle.store import CHALLENGER_FILE, read_challenger, read_pointer
from serving.observation.feedback import FeedbackStore
from serving.observation.request_log import REQUESTS_FOLDER
from serving.observation.review import LoggedAnswer, read_answers

CONFIDENCE = 0.95

Outcome = Literal["promoted", "withdrawn", "undecided"]


@dataclass(frozen=True)
class Answered:
    """What a version answered during the trial, as far as the request log has it.

    Attributes:
        version: In the registry.
        images: Different images.
        labelled: Those with a true label.
        wrong: Those whose label is another one than the answer.
    """

    version: str
    images: int
    labelled: int
    wrong: int

    @property
    def fraction(self) -> float | None:
        """Share of the images that was corrected; None without any."""
        return self.wrong / self.images if self.images else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Clopper-Pearson interval of that share; all of [0, 1] without images."""
        from scipy.stats import binomtest

        if not self.images:
            return 0.0, 1.0
        ends = binomtest(self.wrong, self.images).proportion_ci(CONFIDENCE)
        return float(ends.low), float(ends.high)

    def __str__(self) -> str:
        return f"version {self.version}: {self.wrong:,} of {self.images:,} images corrected"


@dataclass(frozen=True)
class Trial:
    """A canary beside the champion.

    Attributes:
        name: Registered name.
        share: Share of the requests that the canary answers.
        champion: Answers of the champion.
        canary: Answers of the canary.
        p_value: Two-sided, of Fisher's exact test on corrected and other images.
    """

    name: str
    share: float
    champion: Answered
    canary: Answered
    p_value: float

    @property
    def outcome(self) -> Outcome:
        """`promoted` or `withdrawn` where the difference is significant, else `undecided`."""
        if self.p_value >= 1 - CONFIDENCE:
            return "undecided"
        is_better = self.canary.wrong * self.champion.images < self.champion.wrong * self.canary.images
        return "promoted" if is_better else "withdrawn"

    def __str__(self) -> str:
        return f"canary {self.canary}; champion {self.champion}; p = {self.p_value:.3g}"


def compare(name: str) -> Trial:
    """Return how a name's canary does.

    Raises:
        BundleError: Nothing is released under that name, or it has no challenger.
        ReleaseError: Its challenger only looks.
    """
    from scipy.stats import fisher_exact

    check_release_name(name)
    settings = load_settings()
    champion, canary = read_pointer(settings.bundles_dir, name), read_challenger(settings.bundles_dir, name)
    if not canary.share:
        raise ReleaseError(
            f"version {canary.version}, the challenger of {name}, answers no requests; to let it: "
            f"darkroom canary {name} {canary.version} --share 0.1"
        )
    begun_s = (settings.bundles_dir / name / CHALLENGER_FILE).stat().st_mtime
    answered = _count(settings, name, (champion.version, canary.version), begun_s)
    table = [[one.wrong, one.images - one.wrong] for one in answered.values()]
    return Trial(
        name,
        canary.share,
        answered[champion.version],
        answered[canary.version],
        float(fisher_exact(table).pvalue),
    )


def _count(settings: Settings, name: str, versions: Collection[str], begun_s: float) -> dict[str, Answered]:
    """Return what each version answered since a time, seconds since 1970."""
    begun = datetime.fromtimestamp(begun_s, UTC).isoformat(timespec="milliseconds")
    inbox = settings.feedback_dir.parent
    labels = FeedbackStore(settings.feedback_dir).list_labels(name)
    said: dict[str, dict[str, str]] = {version: {} for version in versions}
    for answer in _read_since(inbox / REQUESTS_FOLDER, begun):
        if answer.model == name and answer.version in said:
            said[answer.version][answer.picture_sha256] = answer.label
    return {
        version: Answered(
            version,
            images=len(answers),
            labelled=sum(sha256 in labels for sha256 in answers),
            wrong=sum(labels.get(sha256, label) != label for sha256, label in answers.items()),
        )
        for version, answers in said.items()
    }


def _read_since(folder: Path, begun: str) -> list[LoggedAnswer]:
    files = (file for file in sorted(folder.glob("*.jsonl")) if file.stem >= begun[:10])
    return [answer for file in files for answer in read_answers(file) if answer.time >= begun]


def decide(name: str) -> Trial:
    """Promote or withdraw a canary where what people corrected tells; leave it where it does not.

    Raises:
        BundleError: As `compare`.
        ReleaseError: As `compare`, or the champion was moved meanwhile; nothing changes.
    """
    trial = compare(name)
    if trial.outcome == "withdrawn":
        challenge(name, None)
    elif trial.outcome == "promoted":
        settings = load_settings()
        client = open_store(settings)
        with hold_lock(settings.locks_dir / f"champion-{name}.lock", f"promoting the canary of {name}"):
            changes = complete(client, settings.bundles_dir, name)
            if changes[-1].to_version != trial.champion.version:
                raise ReleaseError(
                    f"version {changes[-1].to_version} became champion of {name} while its canary was compared with "
                    f"version {trial.champion.version}; nothing was promoted"
                )
            move_champion(
                client,
                settings.bundles_dir,
                name,
                action="promote",
                before=trial.champion.version,
                version=get_version(client, name, trial.canary.version),
                why=f"darkroom canary {name} --decide",
                verdict=f"{trial}: promoted",
            )
    return trial
