"""Summaries of releases and runs, for printing."""

from pydantic import BaseModel, ConfigDict

from model_code.release.verdict import Verdict
from model_code.training.run_folder import RunResult
from serving.bundle.manifest import Manifest
from serving.bundle.store import Change


class _Summary(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReleaseSummary(_Summary):
    """What came of a release.

    Attributes:
        mode: `enabled`, `dry_run` or `forced`.
        profile: Profile of the run: `full`, `smoke` or `custom`.
        manifest: Manifest of the bundle.
        champion_before: Version; None if there was none.
        version: In the registry; None for a dry run.
        verdict: Of the gate; None where the same bundle is champion already.
        undone: The rollback that took the alias from this version, if there was one: it is not promoted again.
        is_champion: True if the version is champion now, or would be after a dry run.
    """

    mode: str
    profile: str
    manifest: Manifest
    champion_before: str | None
    version: str | None = None
    verdict: Verdict | None = None
    undone: Change | None = None
    is_champion: bool = False


class Outcome(_Summary):
    """What happened to one run of train-all: its result, or the reason why there is none.

    Attributes:
        recipe: Recipe name.
        seed: Seed of the run.
        result: None when there is none.
        was_cached: True if the result is that of an earlier run.
        is_skipped: True if what it needs is not here: its images, or weights that cannot be downloaded; or if its
            network cannot read the images.
        error: Why there is no result.
    """

    recipe: str
    seed: int
    result: RunResult | None = None
    was_cached: bool = False
    is_skipped: bool = False
    error: str = ""


class Choice(_Summary):
    """Best run of a data set, and what came of its release.

    Attributes:
        name: Registered name.
        run: The run that is released.
        validation_accuracy: Mean over the seeds of its recipe, in [0, 1].
        seeds: Number of these seeds.
        released: None if it was not released.
        error: Why it was not; empty otherwise.
    """

    name: str
    run: RunResult
    validation_accuracy: float
    seeds: int
    released: ReleaseSummary | None = None
    error: str = ""


class Plan(_Summary):
    """What train-all would do of one run.

    Attributes:
        recipe: Recipe name.
        seed: Seed of the run.
        dataset: Packed data set.
        state: Fate of the run, for people.
        seconds: About how long, without downloads; None where nothing is trained for want of something.
    """

    recipe: str
    seed: int
    dataset: str
    state: str
    seconds: float | None = None
