"""Hints in refusals."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_code.hints import explain_rule, suggest


class Settings(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    epochs: Annotated[int, Field(ge=1, le=9)] = 1
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.5
    has_flip: bool = True
    mode: Literal["fast", "slow"] = "fast"
    network: str = "resnet18"
    sizes: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("epochs", 0, "must be at least 1"),
        ("epochs", 10, "must be at most 9"),
        ("epochs", 1.5, "must be a whole number"),
        ("epochs", "many", "must be a whole number"),
        ("rate", 0, "must be more than 0.0"),
        ("rate", 1, "must be less than 1.0"),
        ("rate", "abc", "must be a number"),
        ("rate", float("nan"), "must be finite"),
        ("has_flip", "perhaps", "must be true or false"),
        ("mode", "sometimes", "must be 'fast' or 'slow'"),
        ("network", 18, "must be text"),
        ("sizes", 3, "Input should be a valid tuple"),
    ],
)
def test_a_value_that_breaks_a_rule_is_told_the_rule(name, value, rule):
    with pytest.raises(ValidationError) as caught:
        Settings(**{name: value})
    assert explain_rule(caught.value.errors()[0]) == rule


def test_names_that_are_near_are_suggested():
    known = {"cifar10", "cifar100", "food"}
    assert suggest("cifar1", known=known) == "did you mean cifar10? "
    assert suggest("cifar1", known=sorted(known), count=2) == "did you mean cifar10, cifar100? "
    assert suggest("nothing", "fod", "foood", known=known) == "did you mean food? "
    assert suggest("cifar1", known=known, least_ratio=0.99) == ""
    assert suggest("shapes", known=known) == ""
