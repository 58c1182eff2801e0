"""Settings of a probe: a linear layer or a small MLP learned on frozen features."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model_code.training.run_config import PositiveFloat


class ProbeConfig(BaseModel):
    """Settings of one probe.

    Attributes:
        epochs: Passes over the training features.
        warmup_epochs: Epochs over which the learning rate rises to its highest value; then it follows half a cosine.
        batch_size: Images in one step.
        base_learning_rate: Base learning rate of SGD for a batch of 256 images.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        candidates: Pairs of base_learning_rate and weight_decay of which the best on a held-out fifth of the training
            features is taken in place of the two above; none keeps the two.
        hidden_width: Width of the MLP's one hidden layer; 0 is a linear layer.
        is_standardised: True if each dimension is first brought to mean 0 and variance 1 over the training features;
            for features whose scale is arbitrary, as a random backbone's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=100, ge=1)
    warmup_epochs: int = Field(default=10, ge=0)
    batch_size: int = Field(default=256, ge=1)
    base_learning_rate: PositiveFloat = 30.0
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    candidates: tuple[tuple[PositiveFloat, float], ...] = ()
    hidden_width: int = Field(default=0, ge=0, le=2**16)
    is_standardised: bool = False

    @model_validator(mode="after")
    def _has_epochs_after_warmup(self) -> "ProbeConfig":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} must be below epochs={self.epochs}")
        return self


# The same choice for every backbone and for raw pixels, which need different ones: on features of an untrained network
# a probe learns the training images by heart unless weight decay is large.
_CANDIDATES = tuple((rate, decay) for rate in (0.01, 0.1) for decay in (0.0005, 0.03, 0.1))
RANDOM_FEATURES_LINEAR = ProbeConfig(candidates=_CANDIDATES, is_standardised=True)
RANDOM_FEATURES_MLP = ProbeConfig(
    epochs=50, warmup_epochs=5, candidates=_CANDIDATES, hidden_width=512, is_standardised=True
)
