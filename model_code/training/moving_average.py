"""Exponential moving average of a model's weights."""

import copy

import torch
from torch import Tensor, nn


class MovingAverage:
    """A copy of a model whose weights and BatchNorm statistics follow the model's; BatchNorm's counters are copied.

    Nothing of an update waits for the device or is copied to it.

    Args:
        model: Model that is followed; the copy is on its device.
        decay: Share of itself that the average keeps in each update; the first takes the model's state as it is.

    Attributes:
        module: The copy.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model)
        self._weight, self._updates = 1 - decay, 0
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """A step of the optimiser is done."""
        is_first, self._updates = self._updates == 0, self._updates + 1
        averages, sources = _unzip(self._averaged)
        if is_first:
            torch._foreach_copy_(averages, sources)
        else:
            torch._foreach_lerp_(averages, sources, self._weight)
        if self._copied:
            torch._foreach_copy_(*_unzip(self._copied))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average and the number of its updates; the dictionary loads with weights_only."""
        named = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        return {"n_averaged": torch.tensor(self._updates), **named}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up an average that `state_dict` returned."""
        self._updates = int(state["n_averaged"])
        self.module.load_state_dict(
            {name.removeprefix("module."): tensor for name, tensor in state.items() if name != "n_averaged"}
        )


def _unzip(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [one for one, _ in pairs], [other for _, other in pairs]
