"""Names of released models, and the images that each takes."""

import re

from model_code.data.cache import FEEDBACK_SUFFIX, is_dataset_taken
from model_code.errors import UsageError

# Kinds of run that leave a classifier; the others leave figures.
RELEASED_KINDS = ("supervised", "simsiam")

# Registered name -> the data sets (a shell pattern), with feedback or without, whose runs it takes beside those of its
# own name. Other names take the runs of any data set.
RELEASE_NAMES = {"cifar10": "cifar10", "food": "food1[01]", "shapes": "shapes"}
_NAME_PATTERN = r"[a-z0-9][a-z0-9_-]{0,63}"


def check_release_name(name: str) -> str:
    """Return the pattern of the data set names that `name` takes.

    Raises:
        UsageError: The name has other characters than allowed.
    """
    if not re.fullmatch(_NAME_PATTERN, name):
        raise UsageError(
            f"{name!r} cannot be a registered name; use up to 64 of a-z, 0-9, _ and -, beginning with a letter or digit"
        )
    return RELEASE_NAMES.get(name, "*")


def is_taken(dataset: str, name: str) -> bool:
    """Whether a registered name takes the runs of a data set, with feedback or without."""
    return dataset.removesuffix(FEEDBACK_SUFFIX) == name or is_dataset_taken(dataset, RELEASE_NAMES.get(name, "*"))
