"""The gate in front of `champion`: a challenger is judged against the champion on the same images.

Shape suffixes: N = images, K = classes.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy import stats

from model_code.evaluation.calibration import measure_interval
from model_code.release.gate_rules import GateRules
from serving.bundle.manifest import Precision

RESAMPLES = 20_000
_SEED = 20_260_101

Interval = tuple[float, float]
Labels = npt.NDArray[np.integer]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ClassChange(_Frozen):
    """What happened to one class.

    Attributes:
        label: Its name.
        count: Images of it.
        champion_accuracy: Recall, in [0, 1]; None without a champion or without images.
        challenger_accuracy: Recall, in [0, 1]; None without images.
        gained: Images of it that only the challenger labels rightly; 0 without a champion.
        lost: Those that only the champion labels rightly; 0 without a champion.
        p_value: One-sided exact McNemar test that it got worse; None without a champion or without images.
        adjusted_p_value: The same after Holm's correction for having looked at every class with images.
    """

    label: str
    count: int
    champion_accuracy: float | None
    challenger_accuracy: float | None
    gained: int
    lost: int
    p_value: float | None
    adjusted_p_value: float | None

    @property
    def drop(self) -> float:
        """How far the recall fell, a fraction of the class's images; negative where it rose, 0 without images."""
        return (self.lost - self.gained) / self.count if self.count else 0.0


class Verdict(_Frozen):
    """What the gate decided, and the numbers that it decided on.

    Attributes:
        is_promoted: True if nothing refuses the challenger.
        refusals: Every reason against it, each one sentence with the value and what is allowed.
        champion_version: Version that it was compared with; None if there is no champion.
        split: `test`, or `validation` where the data set has no test images.
        count: Images.
        challenger_accuracy: Share of right labels, in [0, 1].
        challenger_interval: 95 % Clopper-Pearson interval of it.
        champion_accuracy: Accuracy of the champion on the same images; None without one.
        difference: Challenger minus champion, a fraction of the images; None without a champion.
        difference_interval: Percentile interval of it at the rules' confidence, by a bootstrap over images.
        gained: Images that only the challenger labels rightly; 0 without a champion.
        lost: Those that only the champion labels rightly; 0 without a champion.
        p_value: Two-sided exact McNemar test of gained against lost; None without a champion.
        classes: In the order of the network's outputs.
        latency_ms: Median at batch 1 of the challenger's fastest offered variant; None if not measured.
        champion_latency_ms: The same of the champion, for the record; it decides nothing.
        size_bytes: Size of that variant's file; None if not given.
        precision: Precision of that variant, whose labels were judged; None if not given.
        champion_precision: Precision of the champion's variant that it was compared with; None if not given.
        rules: Rules that it was judged by.
    """

    is_promoted: bool
    refusals: tuple[str, ...]
    champion_version: str | None
    split: str
    count: int
    challenger_accuracy: float
    challenger_interval: Interval
    champion_accuracy: float | None
    difference: float | None
    difference_interval: Interval | None
    gained: int
    lost: int
    p_value: float | None
    classes: tuple[ClassChange, ...]
    latency_ms: float | None
    champion_latency_ms: float | None
    size_bytes: int | None
    precision: Precision | None = None
    champion_precision: Precision | None = None
    rules: GateRules

    @property
    def measured(self) -> str:
        """The comparison in words and numbers, without the decision."""
        images = f"on {self.count} {self.split} image{'s' * (self.count != 1)}"
        own, other = (f" as {one}" if one else "" for one in (self.precision, self.champion_precision))
        if self.difference is None or self.difference_interval is None or self.p_value is None:
            low, high = self.challenger_interval
            interval = f"(95 % interval {low:.4f} to {high:.4f})"
            return f"{self.challenger_accuracy:.4f}{own} {interval} {images}, no champion to compare with"
        ends = [_format_points(end, self.count) for end in self.difference_interval]
        return (
            f"{self.challenger_accuracy:.4f}{own} against {self.champion_accuracy:.4f} of version "
            f"{self.champion_version}{other} {images}: {_format_points(self.difference, self.count, '+')} points "
            f"({100 * self.rules.confidence:g} % interval {ends[0]} to {ends[1]}, McNemar p = {self.p_value:.2g})"
        )

    @property
    def decision(self) -> str:
        """`promoted`, or `not promoted` with every reason."""
        return "promoted" if self.is_promoted else f"not promoted: {'; '.join(self.refusals)}"

    @property
    def summary(self) -> str:
        """What was measured and decided, in one line for people."""
        return f"{self.measured}: {self.decision}"


def judge(
    *,
    labels_N: Labels,
    challenger_N: Labels,
    champion_N: Labels | None,
    classes: Sequence[str],
    split: str,
    champion_version: str | None,
    rules: GateRules,
    latency_ms: float | None = None,
    champion_latency_ms: float | None = None,
    size_bytes: int | None = None,
    precision: Precision | None = None,
    champion_precision: Precision | None = None,
) -> Verdict:
    """Decide whether a challenger becomes champion, by what both label the same images.

    It is promoted where nothing refuses it; every refusal is listed:

    - The difference is not above 0, or below the least gain.
    - The difference can be chance: the two-sided exact McNemar test (McNemar 1947, Psychometrika 12) over the images
      that only one of the two labels rightly has p >= 1 - confidence. The test decides and not the bootstrap's
      interval: it holds its level at any count, where the interval is too narrow for few such images (4 gained,
      0 lost: the interval excludes 0, p = 0.125). Asking for both would ask for nothing more: where p is below
      1 - confidence, the interval does not reach below 0. An equal challenger passes in at most half of
      1 - confidence of the cases, because only differences upwards count.
    - The recall of a class fell by more than the limit, and its one-sided exact McNemar test has a p below
      1 - confidence after Holm's correction (1979, Scand. J. Stat. 6) over the classes with images. Without the
      correction a better model of 101 small classes would often be refused by noise in one of them. The price: a small
      class has to fall far before it refuses.
    - A latency or size limit is broken, or the value was not measured.

    Without a champion only the limits of latency and size refuse.

    Args:
        labels_N: Right labels, in [0, K), at least one.
        challenger_N: Labels that the challenger gives the same images; one outside [0, K) counts as wrong.
        champion_N: The same of the champion, in the challenger's order of classes; None if there is none.
        classes: Names of the K classes.
        split: Split of the images: `test` or `validation`.
        champion_version: The champion's version; None if there is none.
        rules: Rules of the gate.
        latency_ms: Median at batch 1 of the challenger's fastest offered variant.
        champion_latency_ms: The same of the champion.
        size_bytes: Size of the challenger's variant.
        precision: Precision of the challenger's variant.
        champion_precision: Precision of the champion's variant.

    Raises:
        ValueError: There are no images, the lengths differ, a label has no class, or a champion lacks its version
            or its labels.
    """
    _check(labels_N, challenger_N, champion_N, classes, champion_version)
    count = len(labels_N)
    is_right_N = challenger_N == labels_N
    was_right_N = None if champion_N is None else champion_N == labels_N
    gained, lost = _count_changes(is_right_N, was_right_N)
    right = int(is_right_N.sum())
    changes = _compare_classes(labels_N, is_right_N, was_right_N, classes)
    difference = None if was_right_N is None else (gained - lost) / count
    p_value = None if was_right_N is None else measure_chance(gained, lost)
    refusals = []
    if difference is not None and p_value is not None:
        refusals += _judge_gain(difference, p_value, gained, lost, count, rules)
        refusals += _judge_classes(changes, rules)
    refusals += _judge_budgets(latency_ms, size_bytes, rules)
    return Verdict(
        is_promoted=not refusals,
        refusals=tuple(refusals),
        champion_version=champion_version,
        split=split,
        count=count,
        challenger_accuracy=right / count,
        challenger_interval=measure_interval(right, count),
        champion_accuracy=None if was_right_N is None else int(was_right_N.sum()) / count,
        difference=difference,
        difference_interval=None if difference is None else resample(gained, lost, count, rules.confidence),
        gained=gained,
        lost=lost,
        p_value=p_value,
        classes=changes,
        latency_ms=latency_ms,
        champion_latency_ms=champion_latency_ms,
        size_bytes=size_bytes,
        precision=precision,
        champion_precision=champion_precision,
        rules=rules,
    )


def measure_chance(gained: int, lost: int, alternative: str = "two-sided") -> float:
    """Return the p value of the exact McNemar test of gained against lost images; 1 if there are neither.

    Args:
        gained: Images that only the challenger labels rightly.
        lost: Images that only the champion labels rightly.
        alternative: `two-sided`, or `less`: only a change for the worse counts.
    """
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost, alternative=alternative).pvalue)


def resample(gained: int, lost: int, count: int, confidence: float) -> Interval:
    """Return the bootstrap's percentile interval of (gained - lost) / count over the images, fractions.

    An image adds 1, -1 or 0 to the sum, so drawing `count` images with replacement is drawing the three counts from
    one multinomial distribution. The seed is fixed: the same counts give the same interval.
    """
    shares = [(count - gained - lost) / count, lost / count, gained / count]
    drawn = np.random.default_rng(_SEED).multinomial(count, shares, size=RESAMPLES)
    tail = (1 - confidence) / 2
    low, high = np.quantile((drawn[:, 2] - drawn[:, 1]) / count, [tail, 1 - tail])
    return float(low), float(high)


def _check(
    labels_N: Labels,
    challenger_N: Labels,
    champion_N: Labels | None,
    classes: Sequence[str],
    champion_version: str | None,
) -> None:
    if (champion_N is None) != (champion_version is None):
        raise ValueError(
            f"champion version {champion_version} came {'without' if champion_N is None else 'with'} labels; "
            "give a champion's version and its labels, or neither"
        )
    shapes = [labels.shape for labels in (labels_N, challenger_N, champion_N) if labels is not None]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1 or shapes[0][0] == 0:
        raise ValueError(f"shapes {shapes} of labels and answers; all must be (images,) of the same images, 1 or more")
    if labels_N.min() < 0 or labels_N.max() >= len(classes):
        raise ValueError(f"labels {labels_N.min()} to {labels_N.max()} for {len(classes)} classes")


def _count_changes(is_right_N: npt.NDArray[np.bool_], was_right_N: npt.NDArray[np.bool_] | None) -> tuple[int, int]:
    """Return how many images were gained and lost."""
    if was_right_N is None:
        return 0, 0
    return int((is_right_N & ~was_right_N).sum()), int((was_right_N & ~is_right_N).sum())


def _compare_classes(
    labels_N: Labels,
    is_right_N: npt.NDArray[np.bool_],
    was_right_N: npt.NDArray[np.bool_] | None,
    classes: Sequence[str],
) -> tuple[ClassChange, ...]:
    found: list[ClassChange] = []
    for index, label in enumerate(classes):
        of_class_N = labels_N == index
        count = int(of_class_N.sum())
        was_right = None if was_right_N is None else was_right_N[of_class_N]
        gained, lost = _count_changes(is_right_N[of_class_N], was_right)
        found.append(
            ClassChange(
                label=label,
                count=count,
                champion_accuracy=None if was_right is None or count == 0 else int(was_right.sum()) / count,
                challenger_accuracy=int(is_right_N[of_class_N].sum()) / count if count else None,
                gained=gained,
                lost=lost,
                p_value=None if was_right is None or count == 0 else measure_chance(gained, lost, "less"),
                adjusted_p_value=None,
            )
        )
    return _adjust(found)


def _adjust(changes: list[ClassChange]) -> tuple[ClassChange, ...]:
    """Return the classes with Holm's p values: the smallest times the number of tests, the next times one less, ..."""
    tested = sorted((change.p_value, index) for index, change in enumerate(changes) if change.p_value is not None)
    adjusted = 0.0
    for rank, (p_value, index) in enumerate(tested):
        adjusted = max(adjusted, min(1.0, (len(tested) - rank) * p_value))
        changes[index] = changes[index].model_copy(update={"adjusted_p_value": adjusted})
    return tuple(changes)


def _judge_gain(difference: float, p_value: float, gained: int, lost: int, count: int, rules: GateRules) -> list[str]:
    refusals = []
    images = f"{gained} images gained, {lost} lost"
    points = f"{_format_points(difference, count, '+')} points ({images})"
    if difference <= 0 or difference < rules.min_gain:
        wanted = (
            f"at least {_format_points(rules.min_gain, count, '+')} (--min-gain)" if rules.min_gain else "more than 0"
        )
        refusals.append(f"the difference of {points} is too small, wanted are {wanted}")
    if difference > 0 and p_value >= rules.alpha:
        refusals.append(f"the difference of {points} can be chance: p = {p_value:.2g}, wanted is below {rules.alpha:g}")
    return refusals


def _judge_classes(changes: tuple[ClassChange, ...], rules: GateRules) -> list[str]:
    return [
        f"{change.label} got worse by {_format_points(change.drop, change.count)} points, recall "
        f"{change.champion_accuracy:.4f} -> {change.challenger_accuracy:.4f} (of {change.count} images "
        f"{change.gained} gained, {change.lost} lost, p = {change.adjusted_p_value:.2g} after Holm), allowed are "
        f"{_format_points(rules.max_class_drop, change.count)} (--max-class-drop)"
        for change in changes
        if change.adjusted_p_value is not None
        and change.adjusted_p_value < rules.alpha
        and change.drop > rules.max_class_drop
    ]


def _judge_budgets(latency_ms: float | None, size_bytes: int | None, rules: GateRules) -> list[str]:
    refusals = []
    if rules.max_latency_ms is not None:
        allowed = f"allowed are {rules.max_latency_ms:g} ms (--max-latency-ms)"
        if latency_ms is None:
            refusals.append(f"the latency at batch 1 was not measured, {allowed}")
        elif latency_ms > rules.max_latency_ms:
            refusals.append(f"the latency at batch 1 is {latency_ms:.6g} ms, {allowed}")
    if rules.max_size_bytes is not None:
        allowed = f"allowed are {rules.max_size_bytes:,} bytes (--max-size-mb)"
        if size_bytes is None:
            refusals.append(f"the size of the file is not known, {allowed}")
        elif size_bytes > rules.max_size_bytes:
            refusals.append(f"the file has {size_bytes:,} bytes, {allowed}")
    return refusals


def _format_points(fraction: float, count: int, sign: str = "") -> str:
    """Return a fraction in points, with decimals enough to see one image of `count`."""
    decimals = 2 if count <= 10_000 else 3
    return f"{round(100 * fraction, decimals) + 0.0:{sign}.{decimals}f}"
