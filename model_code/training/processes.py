"""The processes of one training, as torchrun starts them: who computes which images, and what they tell each other.

Every process holds the same weights and draws the same random numbers; each computes its share of every batch, and the
gradients are averaged. With one process, the usual case, nothing here does anything.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model_code.errors import PeerEndedError, TrainingError
from model_code.settings import read_rank

# A process waits for the others as long as a training may last: torchrun ends all of them when one ends badly.
_LONGEST_WAIT = timedelta(days=7)


@contextmanager
def exchanging() -> Iterator[None]:
    """Say in one line that another process is gone.

    Raises:
        PeerEndedError: A message of the block does not arrive.
    """
    try:
        yield
    except RuntimeError as error:
        raise PeerEndedError(
            "another process of this training has ended; see its own lines, then repeat the command: it goes on from "
            f"the last checkpoint ({str(error).splitlines()[0][:120]})"
        ) from error


@dataclass(frozen=True)
class Processes:
    """One process among those that train together.

    Attributes:
        device: Device of this process.
        rank: This one; 0 is the first, which alone writes files and reports.
        count: Number of processes.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return which of `count` images are this process's."""
        return slice(self.rank * count // self.count, (self.rank + 1) * count // self.count)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, [rows, ...], each having given those of its `share`, in order."""
        if self.count == 1:
            return rows
        lengths = self.add(torch.tensor([len(rows) if rank == self.rank else 0 for rank in range(self.count)]))
        longest = int(lengths.max())
        padded = torch.zeros((longest, *rows.shape[1:]), dtype=rows.dtype, device=self.device)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        with exchanging():
            dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths.tolist(), strict=True)]).to(rows.device)

    def add(self, values: Tensor) -> Tensor:
        """Return the sum of all processes' values."""
        if self.count == 1:
            return values
        total = values.to(self.device, copy=True)
        with exchanging():
            dist.all_reduce(total)
        return total.to(values.device)

    def average_gradients(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        """Replace gradients by their mean over the processes; return the mean of their losses."""
        if self.count == 1:
            return loss
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        mean = self.add(torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in gradients)])) / self.count
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, flat in zip(gradients, mean[1:].split(sizes), strict=True):
            gradient.copy_(flat.view_as(gradient))
        return mean[0]

    def tell(self, message: Any = None) -> Any:  # noqa: ANN401 - anything that can be pickled
        """Return what the first process says; the others wait for it."""
        if self.count == 1:
            return message
        box = [message]
        with exchanging():
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


ALONE = Processes(torch.device("cpu"))


@contextmanager
def join_processes(device: torch.device) -> Iterator[Processes]:
    """Meet the other processes that torchrun started, until the block ends.

    Args:
        device: Device of this process.

    Raises:
        TrainingError: They cannot be reached.
    """
    rank, count = read_rank()
    if count == 1:
        yield Processes(device)
        return
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_LONGEST_WAIT)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"process {rank} of {count} cannot reach the others ({str(error).splitlines()[0]}); "
            "start them with torchrun --nproc-per-node N --no-python darkroom train RECIPE"
        ) from error
    yield Processes(device, rank, count)
    # Only after a good end: while another process still waits for this one, taking the group down can hang.
    with exchanging():
        dist.barrier()
    dist.destroy_process_group()
