"""Names of released models, and the images that each takes."""

from model_code.errors import UsageError

# Registered name -> the data sets (a shell pattern), with feedback or without, whose runs it takes.
RELEASE_NAMES = {"cifar10": "cifar10", "food": "food*", "shapes": "shapes"}


def check_release_name(name: str) -> str:
    """Return the pattern of the data set names that `name` takes.

    Raises:
        UsageError: No model has that name.
    """
    if name not in RELEASE_NAMES:
        raise UsageError(f"{name!r} is not a registered name: choose one of {', '.join(RELEASE_NAMES)}")
    return RELEASE_NAMES[name]
