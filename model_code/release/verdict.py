"""Verdict of the gate on a challenger, with the numbers behind it."""

from pydantic import BaseModel, ConfigDict

from model_code.release.gate_rules import GateRules
from serving.bundle.manifest import Precision

Interval = tuple[float, float]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ClassChange(_Frozen):
    """Change of one class from the champion to the challenger.

    Attributes:
        label: Its name.
        count: Images of it.
        champion_accuracy: Recall, in [0, 1]; None without a champion or without images.
        challenger_accuracy: Recall, in [0, 1]; None without images.
        gained: Images of it that only the challenger labels rightly; 0 without a champion.
        lost: Images of it that only the champion labels rightly; 0 without a champion.
        p_value: One-sided exact McNemar test that it got worse; None without a champion or without images.
        adjusted_p_value: The p value after Holm's correction for having looked at every class with images.
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
    """Decision of the gate, with the numbers behind it.

    Attributes:
        is_promoted: True if nothing refuses the challenger.
        refusals: Every reason against it, each one sentence with the value and what is allowed.
        champion_version: Version that it was compared with; None if there is no champion.
        split: `test`, or `validation` where the data set has no test images.
        count: Images.
        challenger_accuracy: Share of right labels, in [0, 1].
        challenger_interval: 95 % Clopper-Pearson interval of it.
        champion_accuracy: Accuracy of the champion on the same images; None without one.
        difference: Challenger minus champion, of the accuracy or the macro-F1 as the rules say, a fraction; None
            without a champion.
        difference_interval: Percentile interval of it at the rules' confidence, by a bootstrap over images.
        gained: Images that only the challenger labels rightly; 0 without a champion.
        lost: Images that only the champion labels rightly; 0 without a champion.
        p_value: Two-sided exact McNemar test of gained against lost; None without a champion.
        classes: In the order of the network's outputs.
        latency_ms: Median at batch 1 of the challenger's fastest offered variant; None if not measured.
        champion_latency_ms: Median of the champion, for the record; it decides nothing.
        size_bytes: Size of that variant's file; None if not given.
        precision: Precision of that variant, whose labels were judged; None if not given.
        champion_precision: Precision of the champion's variant that it was compared with; None if not given.
        learned_by_champion: How many of the images the champion was trained on, which favours it.
        challenger_macro_f1: Mean F1 of the classes that have images, in [0, 1]; None in verdicts of earlier versions.
        champion_macro_f1: Macro-F1 of the champion; None without one.
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
    learned_by_champion: int = 0
    challenger_macro_f1: float | None = None
    champion_macro_f1: float | None = None
    rules: GateRules

    @property
    def measured(self) -> str:
        """The comparison in words and numbers, without the decision."""
        images = f"on {self.count} {self.split} image{'s' * (self.count != 1)}"
        own, other = (f" as {one}" if one else "" for one in (self.precision, self.champion_precision))
        by_macro_f1 = self.rules.metric == "macro-f1"
        ours, theirs = f"accuracy {self.challenger_accuracy:.4f}", f"{self.champion_accuracy or 0:.4f}"
        if self.difference is None or self.difference_interval is None or self.p_value is None:
            low, high = self.challenger_interval
            macro_f1 = f", macro-F1 {self.challenger_macro_f1:.4f}" if by_macro_f1 else ""
            interval = f"(95 % interval {low:.4f} to {high:.4f})"
            return f"{ours}{own} {interval} {images}{macro_f1}, no champion to compare with"
        more = f", McNemar p = {self.p_value:.2g}"
        if by_macro_f1:
            more = f"; {ours} against {theirs}"
            ours, theirs = f"macro-F1 {self.challenger_macro_f1:.4f}", f"{self.champion_macro_f1:.4f}"
        ends = [format_points(end, self.count) for end in self.difference_interval]
        if self.learned_by_champion:
            images += f" (version {self.champion_version} was trained on {self.learned_by_champion} of them)"
        return (
            f"{ours}{own} against {theirs} of version {self.champion_version}{other} {images}: "
            f"{format_points(self.difference, self.count, '+')} points "
            f"({100 * self.rules.confidence:g} % interval {ends[0]} to {ends[1]}{more})"
        )

    @property
    def decision(self) -> str:
        """`promoted`, or `not promoted` with every reason."""
        return "promoted" if self.is_promoted else f"not promoted: {'; '.join(self.refusals)}"

    @property
    def summary(self) -> str:
        """What was measured and decided, in one line for people."""
        return f"{self.measured}: {self.decision}"


def format_points(fraction: float, count: int, sign: str = "") -> str:
    """Return a fraction in points, with decimals enough to see one image of `count`."""
    decimals = 2 if count <= 10_000 else 3
    return f"{round(100 * fraction, decimals) + 0.0:{sign}.{decimals}f}"
