"""Space of a sweep: a TOML file that names settings of a recipe and the values to search.

learning_rate = {low = 0.01, high = 1.0, log = true}
batch_size = {low = 64, high = 256, step = 64}
"views.hue" = [0.0, 0.1, 0.2]          # choices, in the order of the search
"""

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from model_code.errors import UsageError
from model_code.hints import explain_rule
from model_code.training.run_config import FiniteFloat, RunConfig, override

Choices = tuple[Any, ...]
_KEPT = {"dataset": "give --data NAME", "seed": "give --seed N", "profile": "give --profile NAME"}
_SEARCHED = "write {low, high}, with log = true or a step if wanted, or a list of at least two choices"


class Range(BaseModel):
    """Numbers from `low` to `high`, both included; whole ones if `low`, `high` and `step` are.

    Attributes:
        low: The smallest.
        high: The largest.
        log: True for a log-uniform range.
        step: Distance of neighbouring values from `low` on; None allows every number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    low: int | FiniteFloat
    high: int | FiniteFloat
    log: bool = False
    step: int | FiniteFloat | None = None

    @model_validator(mode="after")
    def _is_possible(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low must be below high, not {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"with log = true low must be above 0, not {self.low}")
        if self.log and self.step is not None:
            raise ValueError("log = true and step exclude each other")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step must be above 0, not {self.step}")
        if self.last == self.low:
            raise ValueError(f"step must be at most {self.high - self.low}, not {self.step}")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether its values are whole numbers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step) if value is not None)

    @property
    def last(self) -> int | float:
        """The largest value that is searched: `high`, or the last step below it."""
        if self.step is None:
            return self.high
        return self.low + math.floor((self.high - self.low) / self.step + 1e-9) * self.step

    def list_samples(self) -> tuple[int | float, ...]:
        """Return the ends, and a value between that is a whole number only if all are."""
        golden = (self.last - self.low) * (3 - math.sqrt(5)) / 2
        inner = self.low + (self.step or (1 if self.is_whole else golden))
        return self.low, inner, self.last


Space = Mapping[str, Range | Choices]


def read_space(file: Path, config: RunConfig) -> Space:
    """Return the settings to search, sorted by name, each checked at its ends and between, or at every choice.

    Args:
        file: TOML file.
        config: Config whose settings they are.

    Raises:
        UsageError: It cannot be read, a setting is unknown, or a value is outside what the setting allows.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--space {file}: {error.strerror}; give a TOML file with the settings to search") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file}: {error}") from error
    if not table:
        raise UsageError(f"{file}: it names no setting; write for example learning_rate = {{low = 0.01, high = 1.0}}")
    space = {name: _parse(file, name, value) for name, value in sorted(_join_names(table).items())}
    for name, searched in space.items():
        if name in _KEPT:
            raise UsageError(f"{file}: {name} is one for all trials of a sweep; {_KEPT[name]}")
        for value in searched.list_samples() if isinstance(searched, Range) else searched:
            try:
                override(config, {name: value})
            except UsageError as error:
                raise UsageError(f"{file}: {error}") from error
    return space


def restore_space(shown: Mapping[str, Any]) -> Space:
    """Return a space from its form in JSON, in which a `Range` is an object and choices are a list."""
    return {
        name: Range.model_validate(searched) if isinstance(searched, dict) else tuple(searched)
        for name, searched in shown.items()
    }


def _parse(file: Path, name: str, value: object) -> Range | Choices:
    if isinstance(value, list):
        choices = tuple(None if one == "none" else one for one in value)
        if not all(one is None or isinstance(one, bool | int | float | str) for one in choices):
            raise UsageError(f"{file}: {name}: choices are texts, numbers, true or false; {_SEARCHED}")
        if len(choices) < 2 or len(set(choices)) < len(choices):  # 1, 1.0 and true are equal
            raise UsageError(f"{file}: {name}: {value} are not two or more different choices; {_SEARCHED}")
        return choices
    if not isinstance(value, dict):
        raise UsageError(f"{file}: {name}: {value!r} is one value; {_SEARCHED}, or fix it with --set")
    try:
        return Range.model_validate(value)
    except ValidationError as error:
        first = error.errors()[-1]  # of a number that is neither, the reason why it is no float
        where = ".".join([name, *(str(part) for part in first["loc"][:1])])
        raise UsageError(f"{file}: {where}: {explain_rule(first)}; {_SEARCHED}") from error


def _join_names(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings inside others by names such as `views.hue`: a table of tables or lists is such a group."""
    joined: dict[str, Any] = {}
    for key, value in table.items():
        is_group = isinstance(value, dict) and value and all(isinstance(one, dict | list) for one in value.values())
        joined |= {f"{key}.{name}": one for name, one in value.items()} if is_group else {key: value}
    return joined
