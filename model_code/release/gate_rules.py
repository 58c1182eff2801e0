"""The rules of the gate, and the bounds of their values."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Gain = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Limit = Annotated[float, Field(gt=0)]
Metric = Literal["accuracy", "macro-f1"]


class GateRules(BaseModel):
    """What a challenger has to show.

    Attributes:
        metric: Figure that has to rise: accuracy, or macro-F1 over the classes that have images.
        min_gain: Least difference of that figure, a fraction, in [0, 1). It is compared with the measured difference;
            that the difference is no chance is asked besides.
        confidence: A difference counts where chance alone makes one as large in less than 1 - confidence of the
            cases; also the level of the difference's interval. In (0, 1).
        max_class_drop: Most that the recall of a class may fall, in [0, 1]; a larger fall refuses where it is no
            chance.
        max_latency_ms: Highest median at batch 1 of the fastest offered variant; None for no limit.
        max_size_bytes: Largest file of that variant; None for no limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    metric: Metric = "accuracy"
    min_gain: Gain = 0.0
    confidence: float = Field(0.95, gt=0, lt=1)
    max_class_drop: Fraction = 0.05
    max_latency_ms: Limit | None = None
    max_size_bytes: int | None = Field(None, gt=0)

    @property
    def alpha(self) -> float:
        """1 - confidence, without the rounding of floats: 0.05 for 0.95."""
        return round(1 - self.confidence, 12)
