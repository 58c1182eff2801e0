"""How the learning rate moves over the steps of a run."""

import math


def cosine_factor(step: int, steps: int, warmup_steps: int = 0) -> float:
    """Return what the learning rate is multiplied by: a straight rise, then half a cosine towards 0.

    Args:
        step: Finished steps, 0 to steps - 1.
        steps: Of the whole run.
        warmup_steps: Steps of the rise; the last of them has factor 1.

    Returns:
        In (0, 1].
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))
