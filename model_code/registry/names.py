"""What a released model may be called, and which pictures each name takes."""

from model_code.data.sources.feedback import FEEDBACK_SUFFIX
from model_code.errors import UsageError

# Registered name -> the data sets (shell patterns) whose runs it takes.
RELEASE_NAMES = {
    "cifar10": ("cifar10", f"cifar10{FEEDBACK_SUFFIX}"),
    "food": ("food*",),
    "shapes": ("shapes", f"shapes{FEEDBACK_SUFFIX}"),
}


def check_release_name(name: str) -> tuple[str, ...]:
    """Return the patterns of the data set names that `name` takes.

    Raises:
        UsageError: No model has that name.
    """
    if name not in RELEASE_NAMES:
        raise UsageError(f"{name!r} is not a registered name: choose one of {', '.join(RELEASE_NAMES)}")
    return RELEASE_NAMES[name]
