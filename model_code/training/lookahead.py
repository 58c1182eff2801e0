"""Lookahead: weights that are pulled back to a slow average of themselves."""

import torch
from torch import Tensor, nn

STEPS_BETWEEN_PULLS = 5
# The slow weights keep this share of themselves at the end of the run; before, the cube of the run's progress of it.
LAST_DECAY = 0.95**STEPS_BETWEEN_PULLS


class Lookahead:
    """Every few steps the slow weights move towards the network's, and the network's become the slow ones.

    The pull grows from nothing: decay(step) = 0.95^5 (step / steps)^3. BatchNorm's running statistics are averaged with
    the weights. After the last step the network has the slow weights.

    Args:
        model: Whose state is averaged in place.
        steps: Number of steps of the whole run.

    Source: Jordan 2024, arXiv:2404.00498, Sec. 3.4; Zhang et al. 2019, arXiv:1907.08610.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        self._fast = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
        self._slow = [tensor.clone() for tensor in self._fast]
        self._steps = steps

    @torch.no_grad()
    def end_step(self, step: int) -> None:
        """A step of the optimiser is done, counted from 1 over the whole run."""
        if step % STEPS_BETWEEN_PULLS == 0:
            decay = LAST_DECAY * (step / self._steps) ** 3
            torch._foreach_lerp_(self._slow, self._fast, 1 - decay)
            torch._foreach_copy_(self._fast, self._slow)
        if step == self._steps:
            torch._foreach_copy_(self._fast, self._slow)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the slow weights; the dictionary loads with weights_only."""
        return {str(index): tensor for index, tensor in enumerate(self._slow)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up slow weights that `state_dict` returned."""
        for index, tensor in enumerate(self._slow):
            tensor.copy_(state[str(index)])
