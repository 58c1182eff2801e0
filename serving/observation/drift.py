"""Drift of the arriving images from those that a model was measured on, and its accuracy on them, without labels.

The population stability index (PSI) compares how sure the model is of the last predictions with how sure it was of the
images that it was measured on: `sum((p - q) * ln(p / q))` over bins of the largest probability, p the share of the
predictions in a bin and q that of the reference. The field's rule of thumb: below 0.1 nothing has changed, above 0.25
the two differ much. It sees what changes how sure the model is, and nothing else.

The estimated accuracy is the mean of the calibrated probabilities of the predicted labels (confidence-based performance
estimation; Garg et al. 2022, arXiv:2201.04234, average confidence). It is right as long as the probabilities are.
"""

import asyncio
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Sequence

from serving.bundle.manifest import Manifest, Reliability, ReliabilityBin
from serving.models.predictions import AccuracyEstimate, ModelIdentity, ModelsAnswer, PredictAnswer

WINDOW_PREDICTIONS = 1000
LEAST_PREDICTIONS = 200
PUBLISH_INTERVAL_S = 1.0
# Two equal distributions have a PSI of about (bins - 1) * (1/n + 1/N): few, well-filled bins keep that noise small.
_MOST_BINS = 10
_LEAST_BIN_IMAGES = 20
_LEAST_REFERENCE_IMAGES = 100
# Added to each bin's count, so that an empty one has a logarithm.
_SMOOTHING = 0.5
_NORMAL_975 = 1.96

_Key = tuple[str, str]


class DriftWindow:
    """The largest probabilities of one model's last predictions beside those of its reference."""

    def __init__(self, reference: Reliability, size: int = WINDOW_PREDICTIONS, least: int = LEAST_PREDICTIONS) -> None:
        """Start without predictions.

        Args:
            reference: Confidence of the model on the images that it was measured on.
            size: Number of the last predictions that count.
            least: Smallest number of predictions with a score.
        """
        groups = merge_bins(reference.bins_after)
        self._highs = [group[-1].high for group in groups]
        self._reference = _smooth([sum(one.count for one in group) for group in groups])
        self._is_usable = reference.count >= _LEAST_REFERENCE_IMAGES and len(groups) > 1
        self._size, self._least = size, least
        self._last: deque[float] = deque()
        self._counts = [0] * len(groups)

    def add(self, probability: float) -> None:
        """Count the largest probability of one prediction, in [0, 1]; the oldest one leaves a full window."""
        self._last.append(probability)
        self._counts[self._find_group(probability)] += 1
        if len(self._last) > self._size:
            self._counts[self._find_group(self._last.popleft())] -= 1

    def _find_group(self, probability: float) -> int:
        # The last bin takes what rounding puts above its upper end.
        return min(bisect_left(self._highs, probability), len(self._highs) - 1)

    @property
    def score(self) -> float | None:
        """The PSI, 0 or more; None with too few predictions, or a reference that says too little."""
        if not self._is_usable or len(self._last) < self._least:
            return None
        shares = _smooth(self._counts)
        return sum((p - q) * math.log(p / q) for p, q in zip(shares, self._reference, strict=True))

    @property
    def accuracy(self) -> AccuracyEstimate | None:
        """The estimated accuracy of the window; None with too few predictions.

        The interval is that of a sum of independent draws, each right with its own probability.
        """
        count = len(self._last)
        if count < self._least:
            return None
        mean = math.fsum(self._last) / count
        margin = _NORMAL_975 * math.sqrt(math.fsum(p * (1 - p) for p in self._last)) / count
        return AccuracyEstimate(
            accuracy_fraction=mean, low=max(0.0, mean - margin), high=min(1.0, mean + margin), count=count
        )


def merge_bins(bins: Sequence[ReliabilityBin]) -> list[list[ReliabilityBin]]:
    """Join neighbours until each group but the last on its side holds enough of the reference.

    The fullest bin stays alone, however full it is: of a model that is nearly always sure, the few images of which
    it is not are what a change shows in.

    Args:
        bins: By ascending probability.

    Returns:
        At most about ten groups, in the same order.
    """
    fullest = max(range(len(bins)), key=lambda index: bins[index].count)
    rest = sum(one.count for one in bins) - bins[fullest].count
    enough = max(_LEAST_BIN_IMAGES, math.ceil(rest / (_MOST_BINS - 1)))
    return [*_merge(bins[:fullest], enough), [bins[fullest]], *_merge(bins[fullest + 1 :], enough)]


def _merge(bins: Sequence[ReliabilityBin], enough: int) -> list[list[ReliabilityBin]]:
    groups: list[list[ReliabilityBin]] = []
    group: list[ReliabilityBin] = []
    for one in bins:
        group.append(one)
        if sum(each.count for each in group) >= enough:
            groups.append(group)
            group = []
    if group and groups:
        groups[-1] += group
    elif group:
        groups.append(group)
    return groups


def _smooth(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + _SMOOTHING * len(counts)
    return [(count + _SMOOTHING) / total for count in counts]


class DriftWatch:
    """The drift and estimated accuracy of every model that answers; used from the event loop, but for `keep`."""

    def __init__(
        self,
        on_change: Callable[[str, str, DriftWindow | None], None] | None = None,
        interval_s: float = PUBLISH_INTERVAL_S,
    ) -> None:
        """Start without predictions.

        Args:
            on_change: Told name, version and window of each model at most once in `interval_s` seconds, after its last
                prediction too; None as the window of a model that does not answer any more.
            interval_s: Between two calls.
        """
        self._on_change = on_change
        self._interval_s = interval_s
        self._is_due = False
        self._windows: dict[_Key, DriftWindow] = {}
        self._served: frozenset[_Key] = frozenset()

    def add(self, manifest: Manifest, answer: PredictAnswer) -> None:
        """Count the predictions of one answer; costs the same however many came before."""
        if manifest.calibration is None or not manifest.calibration.reliability:
            return
        key = (answer.model.name, answer.model.version)
        if key not in self._served:
            return  # asked before the model was replaced
        window = self._windows.get(key)
        if window is None:
            # On test if there is one: those images chose neither weights nor temperature.
            window = self._windows[key] = DriftWindow(manifest.calibration.reliability[-1])
        for prediction in answer.predictions:
            window.add(prediction.probability)
        if self._on_change is not None and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(self._interval_s, self._tell)

    def describe(self, answer: ModelsAnswer) -> ModelsAnswer:
        """Return the answer to `GET /v1/models` with the drift and the estimated accuracy of each model."""
        models = tuple(model.model_copy(update=self._observe(model)) for model in answer.models)
        return answer.model_copy(update={"models": models})

    def keep(self, models: Collection[ModelIdentity]) -> None:
        """Forget the models that do not answer any more."""
        served = self._served = frozenset((model.name, model.version) for model in models)
        # A copy: the event loop may add a model meanwhile.
        windows = dict(self._windows)
        gone = [key for key in windows if key not in served]
        self._windows = {key: window for key, window in windows.items() if key in served}
        if self._on_change is not None:
            for name, version in gone:
                self._on_change(name, version, None)

    def _observe(self, model: ModelIdentity) -> dict[str, object]:
        window = self._windows.get((model.name, model.version))
        return {} if window is None else {"drift_score": window.score, "estimated_accuracy": window.accuracy}

    def _tell(self) -> None:
        self._is_due = False
        assert self._on_change is not None, "nobody else asks for it"
        for (name, version), window in self._windows.items():
            if (name, version) in self._served and window.accuracy is not None:
                self._on_change(name, version, window)
