"""Contrasts decided on runs paired by seed: mean difference, its 95 % interval, and the words for it."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from model_code.report.amounts import format_points
from model_code.report.collection import FULL, Collection, Run, is_smoke, rank_budget
from model_code.report.questions import Contrast

LEAST_SEEDS = 3
CONFIDENCE = 0.95
# Differences of equal fractions differ by rounding only.
_EQUAL = 1e-12
# Params that every two recipes differ in.
_NAMES = {"recipe", "profile", "budget"}


@dataclass(frozen=True)
class Pair:
    """Two runs of one seed; `difference` is treatment minus control, a fraction."""

    seed: int
    treatment: Run
    control: Run
    difference: float


@dataclass(frozen=True)
class Verdict:
    """What the runs say about a contrast.

    Attributes:
        contrast: Contrast that was asked about.
        budget: Budget of every run in `pairs`; None without pairs.
        pairs: By ascending seed.
        other_images: Seeds that were left out because the two runs saw different images.
        missing: Recipes of the contrast without any finished run.
        is_descriptive: The difference is shown and not judged.
    """

    contrast: Contrast
    budget: str | None
    pairs: tuple[Pair, ...]
    other_images: int = 0
    missing: tuple[str, ...] = ()
    is_descriptive: bool = False

    @property
    def mean(self) -> float:
        """Mean difference, a fraction; only where there are pairs."""
        return float(np.mean([pair.difference for pair in self.pairs]))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean difference, fractions; None for fewer than `LEAST_SEEDS` seeds."""
        if len(self.pairs) < LEAST_SEEDS:
            return None
        return measure_interval([pair.difference for pair in self.pairs])

    @property
    def is_smoke(self) -> bool:
        """Whether only smoke runs were found, which decide nothing."""
        return self.budget is not None and is_smoke(self.budget)

    @property
    def is_full(self) -> bool:
        """Whether the documented budget was run."""
        return self.budget == FULL

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Of every run that was used, each once."""
        return tuple(dict.fromkeys(run.run_id for pair in self.pairs for run in (pair.treatment, pair.control)))

    @property
    def outcome(self) -> str:
        """The verdict without its figures, e.g. `higher`; only where there are pairs."""
        if self.is_smoke:
            return "smoke: not a result"
        if self.is_descriptive:
            return "not judged"
        if self.interval is None:
            return f"undecided: fewer than {LEAST_SEEDS} seeds"
        low, high = self.interval
        return "higher" if low > 0 else "lower" if high < 0 else "no difference shown"

    @property
    def points(self) -> str:
        """Mean difference in points with its interval, e.g. `+1.2 [0.4, 2.0]`; only where there are pairs."""
        if self.is_smoke or self.interval is None:
            return format_points((self.mean,), has_sign=True)[0]
        mean, low, high = format_points((self.mean, *self.interval))
        return f"{'+' if self.mean >= 0 else ''}{mean} [{low}, {high}]"

    @property
    def words(self) -> str:
        """The verdict in words, e.g. `higher by 1.2 points [0.4, 2.0], 3 seeds`."""
        if not self.pairs:
            return self._explain_absence()
        count = len(self.pairs)
        seeds = f"{count} seed{'s' * (count > 1)}"
        if self.is_smoke:
            return f"smoke: not a result ({self._describe_difference()}, {seeds})"
        if self.is_descriptive:
            return f"not judged: {self._describe_difference()}, {seeds}"
        if self.interval is None:
            left_out = f" ({self.other_images} more on different images)" if self.other_images else ""
            return f"undecided: {count} of at least {LEAST_SEEDS} seeds{left_out}"
        return self._judge(*self.interval, seeds)

    def _judge(self, low: float, high: float, seeds: str) -> str:
        same = ", the same in each" if low == high else ""
        if low <= 0 <= high:
            return f"no difference that {seeds} can show: {self._describe_difference()}{same}"
        word, sign = ("higher", 1) if low > 0 else ("lower", -1)
        nearest, farthest = sorted((sign * low, sign * high))
        texts = format_points((sign * self.mean, nearest, farthest))
        return f"{word} by {texts[0]} points [{texts[1]}, {texts[2]}], {seeds}{same}"

    def _describe_difference(self) -> str:
        mean, bracket, interval = self.points.partition(" [")
        return f"{mean} points{bracket}{interval}"

    def _explain_absence(self) -> str:
        if self.missing:
            both = set(self.missing) == {self.contrast.treatment, self.contrast.control}
            return "not run" if both else f"not run: no run of {self.missing[0]}"
        if self.other_images:
            return f"undecided: the runs saw different images ({self.other_images} seeds)"
        return "undecided: no seed was run with both at the same budget"

    def list_differing_settings(self) -> list[str]:
        """Return the names of the settings in which treatment and control differ, recipe names apart."""
        if not self.pairs:
            return []
        treatment, control = self.pairs[0].treatment.params, self.pairs[0].control.params
        names = sorted((set(treatment) | set(control)) - _NAMES)
        return [name for name in names if treatment.get(name) != control.get(name)]


def measure_interval(differences: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of paired differences: Student's t over at least two seeds.

    Equal differences give an interval without width.
    """
    mean, count = float(np.mean(differences)), len(differences)
    if np.ptp(differences) < _EQUAL:
        return mean, mean
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * np.std(differences, ddof=1) / np.sqrt(count))
    return mean - half, mean + half


def decide(collection: Collection, contrast: Contrast, is_descriptive: bool = False) -> Verdict:
    """Return the verdict on a contrast, from one budget only.

    Full runs decide where there are any; else the custom budget with the most pairs; smoke runs are the last resort.
    """
    recipes = dict.fromkeys((contrast.treatment, contrast.control))
    missing = tuple(recipe for recipe in recipes if not collection.list_documented(recipe))
    found: list[Verdict] = []
    for group in collection.list_documented(contrast.treatment):
        pairs, other_images = _pair(collection, contrast, group.budget)
        if pairs or other_images:
            found.append(Verdict(contrast, group.budget, pairs, other_images, is_descriptive=is_descriptive))
    with_pairs = [verdict for verdict in found if verdict.pairs] or found
    if not with_pairs:
        return Verdict(contrast, None, (), missing=missing, is_descriptive=is_descriptive)
    return min(with_pairs, key=lambda verdict: rank_budget(verdict.budget or "", len(verdict.pairs)))


def _pair(collection: Collection, contrast: Contrast, budget: str) -> tuple[tuple[Pair, ...], int]:
    """Return the pairs at one budget, and how many seeds were left out because the images differ."""
    treatments = collection.get_group(contrast.treatment, budget)
    controls = collection.get_group(contrast.control, budget)
    if treatments is None or controls is None:
        return (), 0
    by_seed = {run.seed: run for run in controls.runs}
    pairs, other_images = [], 0
    for treatment in treatments.runs:
        control = by_seed.get(treatment.seed)
        if control is None:
            continue
        after = treatment.metrics.get(contrast.treatment_metric)
        before = control.metrics.get(contrast.control_metric)
        if after is None or before is None:
            continue
        if treatment.data_checksum != control.data_checksum:
            other_images += 1
            continue
        pairs.append(Pair(treatment.seed, treatment, control, after - before))
    return tuple(pairs), other_images
