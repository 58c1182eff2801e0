"""Learning rate schedules over the steps of a run."""

import math


def triangular_factor(step: int, steps: int, triangle: tuple[float, float, float]) -> float:
    """Return what the learning rate is multiplied by: a straight rise to 1, then a straight fall.

    Args:
        step: Finished steps, 0 to steps - 1.
        steps: Number of steps of the whole run.
        triangle: Factor at the first step, share of the steps at whose end the factor is 1, factor after the last step.

    Returns:
        In [0, 1].
    """
    start, peak, end = triangle
    rise = int(steps * peak)
    if step < rise:
        return start + (1 - start) * step / rise
    return 1 + (end - 1) * (step - rise) / (steps - rise)


def cosine_factor(step: int, steps: int, warmup_steps: int = 0) -> float:
    """Return what the learning rate is multiplied by: a straight rise, then half a cosine towards 0.

    Args:
        step: Finished steps, 0 to steps - 1.
        steps: Number of steps of the whole run.
        warmup_steps: Steps of the rise; the last of them has factor 1.

    Returns:
        In (0, 1].
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))
