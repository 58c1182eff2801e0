"""The gate in front of `champion`: a challenger is judged against the champion on the same images.

Shape suffixes: N = images, K = classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from model_code.evaluation.calibration import measure_interval
from model_code.release.gate_rules import GateRules
from model_code.release.macro_f1 import measure_macro_f1, resample_macro_f1
from model_code.release.verdict import ClassChange, Interval, Verdict, format_points
from serving.bundle.manifest import Precision

RESAMPLES = 20_000
_SEED = 20_260_101
_SHOWN_CLASSES = 3

Labels = npt.NDArray[np.integer]


class _Gain(NamedTuple):
    """Difference of the figure that decides, its interval, and the refusals that follow from them."""

    difference: float
    interval: Interval
    refusals: list[str]


class _MacroF1(NamedTuple):
    """Labels of both models, and the macro-F1 of each."""

    labels_N: Labels
    challenger_N: Labels
    champion_N: Labels
    challenger: float
    champion: float


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
    learned_by_champion: int = 0,
) -> Verdict:
    """Decide whether a challenger becomes champion, by what both label the same images.

    It is promoted where nothing refuses it; every refusal is listed:

    - The difference of accuracies, or of macro-F1 where the rules say so, is not above 0, or below the least gain.
    - It is not significant: the two-sided exact McNemar test (McNemar 1947, Psychometrika 12) over the images
      that only one of the two labels rightly has p >= 1 - confidence. The test decides and not the bootstrap's
      interval: it holds its level at any count, where the interval is too narrow for few such images (4 gained,
      0 lost: the interval excludes 0, p = 0.125). Asking for both would ask for nothing more: where p is below
      1 - confidence, the interval does not reach below 0. An equal challenger passes in at most half of
      1 - confidence of the cases, because only differences upwards count. For macro-F1 the bootstrap's interval has
      to be above 0: McNemar's test counts images, of whatever class. Where classes have few images, that lets more
      equal challengers pass: 3.9 % of 1,000 drawn pairs with 1,000 and 10 images in two classes.
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
        learned_by_champion: How many of the images the champion was trained on.

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
    p_value = None if was_right_N is None else measure_chance(gained, lost)
    refusals = [*_judge_classes(changes, rules), *_judge_budgets(latency_ms, size_bytes, rules)]
    macro_f1 = measure_macro_f1(labels_N, challenger_N, len(classes))
    champion_macro_f1 = None if champion_N is None else measure_macro_f1(labels_N, champion_N, len(classes))
    gain = None
    if champion_N is not None and champion_macro_f1 is not None:
        by_macro_f1 = _MacroF1(labels_N, challenger_N, champion_N, macro_f1, champion_macro_f1)
        if rules.metric == "macro-f1":
            gain = _judge_macro_f1(by_macro_f1, len(classes), rules)
        else:
            gain = _judge_accuracy(gained, lost, count, rules)
            if gain.refusals and not refusals:
                gain.refusals[-1] += _suggest_macro_f1(by_macro_f1, len(classes), rules)
        refusals = [*gain.refusals, *refusals]
    return Verdict(
        is_promoted=not refusals,
        refusals=tuple(refusals),
        champion_version=champion_version,
        split=split,
        count=count,
        challenger_accuracy=right / count,
        challenger_interval=measure_interval(right, count),
        champion_accuracy=None if was_right_N is None else int(was_right_N.sum()) / count,
        difference=None if gain is None else gain.difference,
        difference_interval=None if gain is None else gain.interval,
        gained=gained,
        lost=lost,
        p_value=p_value,
        classes=changes,
        latency_ms=latency_ms,
        champion_latency_ms=champion_latency_ms,
        size_bytes=size_bytes,
        precision=precision,
        champion_precision=champion_precision,
        learned_by_champion=learned_by_champion,
        challenger_macro_f1=macro_f1,
        champion_macro_f1=champion_macro_f1,
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


def _judge_accuracy(gained: int, lost: int, count: int, rules: GateRules) -> _Gain:
    difference, p_value = (gained - lost) / count, measure_chance(gained, lost)
    points = f"{format_points(difference, count, '+')} points ({gained} images gained, {lost} lost)"
    refusals = _judge_difference(difference, points, count, rules)
    if difference > 0 and p_value >= rules.alpha:
        refusals.append(
            f"the difference of {points} is not significant: p = {p_value:.2g}, wanted is below {rules.alpha:g}"
        )
    return _Gain(difference, resample(gained, lost, count, rules.confidence), refusals)


def _judge_macro_f1(pair: _MacroF1, classes: int, rules: GateRules) -> _Gain:
    count, difference = len(pair.labels_N), pair.challenger - pair.champion
    interval = resample_macro_f1(pair.labels_N, pair.challenger_N, pair.champion_N, classes, rules.confidence)
    points = f"{format_points(difference, count, '+')} points of macro-F1"
    refusals = _judge_difference(difference, points, count, rules)
    if difference > 0 and interval[0] <= 0:
        low, high = (format_points(end, count) for end in interval)
        level = f"{100 * rules.confidence:g} % interval {low} to {high}"
        refusals.append(f"the difference of {points} is not significant: {level}, wanted is one above 0")
    return _Gain(difference, interval, refusals)


def _suggest_macro_f1(pair: _MacroF1, classes: int, rules: GateRules) -> str:
    """Return what to add to a refusal by accuracy where macro-F1 would promote, else nothing."""
    if pair.challenger <= pair.champion or _judge_macro_f1(pair, classes, rules).refusals:
        return ""
    return f" (by macro-F1, {pair.champion:.4f} -> {pair.challenger:.4f}, it would be promoted: --by macro-f1)"


def _judge_difference(difference: float, points: str, count: int, rules: GateRules) -> list[str]:
    if difference > 0 and difference >= rules.min_gain:
        return []
    wanted = f"below {format_points(rules.min_gain, count, '+')} (--min-gain)" if rules.min_gain else "not above 0"
    return [f"the difference of {points} is {wanted}"]


def _judge_classes(changes: tuple[ClassChange, ...], rules: GateRules) -> list[str]:
    """Return the refusal by classes, the worst first; the verdict has the numbers of every class."""
    worse = [
        change
        for change in changes
        if change.adjusted_p_value is not None
        and change.adjusted_p_value < rules.alpha
        and change.drop > rules.max_class_drop
    ]
    if not worse:
        return []
    worse.sort(key=lambda change: -change.drop)
    named = ", ".join(
        f"{change.label} got worse by {format_points(change.drop, change.count)} points (recall "
        f"{change.champion_accuracy:.4f} -> {change.challenger_accuracy:.4f}, of {change.count} images "
        f"{change.gained} gained, {change.lost} lost, p = {change.adjusted_p_value:.2g} after Holm)"
        for change in worse[:_SHOWN_CLASSES]
    )
    if len(worse) > _SHOWN_CLASSES:
        more = len(worse) - _SHOWN_CLASSES
        named += f", and {more} more class{'es' * (more > 1)} did"
    count = max(change.count for change in worse)
    return [f"{named}; allowed are {format_points(rules.max_class_drop, count)} (--max-class-drop)"]


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
