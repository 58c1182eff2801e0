"""A step of training that reads its place from the device: one CUDA graph replays all of it.

Shape suffixes: N = images of an epoch, B = images of a batch, H = height, W = width, C = the three colour channels,
S = steps of an epoch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from model_code.errors import first_line

# Real steps before a recording, on its stream: they make the optimiser's state and the libraries' workspaces.
STEPS_BEFORE_RECORDING = 3


class WholeStep:
    """Gathers, augments, learns and notes the loss; on CUDA recorded once and replayed.

    The images' order, the place in it, the losses and the learning rates are in tensors that stay where they are. A
    CPU computes the same eagerly.

    Args:
        images_NHWC: uint8 images, on the device.
        batch_size: Images of a batch.
        steps: Steps of an epoch.
        compute: Images and indices of a batch, and whether it is the epoch's last -> its mean loss, and what it adds to
            the epoch's total; without any work of the host but in an epoch's last step, which is not replayed.
        optimizer: Moves the weights in `compute`.
        generator: Generator of the augmentation.

    Attributes:
        order_N: Indices of the images in the order in which they are visited.
        losses_S: Mean loss of each step.
        total: Sum of what the steps add.
        taken: Steps so far.
        replayed: How many of them were replayed.
    """

    def __init__(
        self,
        images_NHWC: Tensor,
        batch_size: int,
        steps: int,
        compute: Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]],
        optimizer: Optimizer,
        generator: torch.Generator,
    ) -> None:
        device = images_NHWC.device
        self._images_NHWC, self._compute = images_NHWC, compute
        self._optimizer, self._generator, self._last = optimizer, generator, steps - 1
        self._is_cuda = device.type == "cuda"
        self.order_N = torch.zeros(len(images_NHWC), dtype=torch.int64, device=device)
        self.losses_S = torch.zeros(steps, device=device)
        self.total = torch.zeros((), device=device)
        self._step_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self._places_B = torch.arange(batch_size, device=device)
        self._steps_S = torch.arange(steps, device=device)
        # Kernels read float32; a CPU rounds as it does from a number.
        dtype = torch.float32 if self._is_cuda else torch.float64
        self._rates = [torch.zeros((), dtype=dtype, device=device) for _ in optimizer.param_groups]
        self._stream = torch.cuda.Stream(device) if self._is_cuda else None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._recorded: object = None
        self._steps_taken = self.taken = self.replayed = 0
        self._is_recordable = self._is_cuda

    def begin(self, order_N: Tensor, losses_S: Tensor, total: Tensor, step: int) -> None:
        """Take up an epoch, or what an interruption left of it."""
        for ours, given in ((self.order_N, order_N), (self.losses_S, losses_S), (self.total, total)):
            ours.copy_(given)
        self._step_1.fill_(step)

    def take(self, step: int, kind: object, prepare: Callable[[], Callable[[], None]]) -> None:
        """Take a step; record it where that is due.

        Args:
            step: Counted from 0, of the epoch.
            kind: What a recording holds for; another one is recorded anew.
            prepare: Called before a recording, during which no other thread may use the device; what it returns puts
                weights, optimiser and random numbers back as they were then.
        """
        is_last = step == self._last
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        if kind != self._recorded:
            self._recorded, self._graph, self._steps_taken = kind, None, 0
        if self._graph is None and self._is_recordable and self._steps_taken >= STEPS_BEFORE_RECORDING and not is_last:
            self._record(prepare)
        if self._graph is not None and not is_last:
            self._graph.replay()
            self.replayed += 1
        elif self._stream is None or self._graph is not None or not self._is_recordable:
            self._run(is_last)
        else:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._run(is_last)
            torch.cuda.current_stream().wait_stream(self._stream)
        self._steps_taken += 1
        self.taken += 1

    def _run(self, is_last: bool) -> None:
        chosen_B = self.order_N.index_select(0, self._step_1 * len(self._places_B) + self._places_B)
        with self._rates_in_tensors():
            loss, share = self._compute(self._images_NHWC[chosen_B], chosen_B, is_last)
        # Not by an assignment: deterministic algorithms would sort its index.
        self.losses_S.copy_(torch.where(self._steps_S == self._step_1, loss, self.losses_S))
        self.total.add_(share)
        self._step_1.add_(1)

    def _record(self, prepare: Callable[[], Callable[[], None]]) -> None:
        """Record a step, which computes nothing yet; where that fails, put everything back, say so, go on eagerly."""
        undo: Callable[[], None] | None = None
        try:
            undo = self._keep(prepare())
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(self._generator)
            # Only this thread is watched: another one may write a checkpoint.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._run(is_last=False)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            self._is_recordable = False
            reason = first_line(error)[:100]
        else:
            self._graph = graph
            return
        # Outside of the handler, which holds on to what the failed recording has made.
        if undo is not None:
            undo()
        print(
            f"engine.compile=step: this step cannot be recorded, training goes on without it ({reason})",
            flush=True,
        )

    def _keep(self, undo_rest: Callable[[], None]) -> Callable[[], None]:
        """Return what puts back everything that a failed recording may have touched."""
        losses_S, total, step_1 = self.losses_S.clone(), self.total.clone(), self._step_1.clone()
        stream = torch.cuda.current_stream() if self._is_cuda else None
        # A recording that fails leaves its generators as if it went on; copies of their states have no part in it.
        generators = [self._generator, torch.cuda.default_generators[self.total.device.index]] if self._is_cuda else []
        copies = [generator.clone_state() for generator in generators]

        def undo() -> None:
            if stream is not None:
                torch.cuda.set_stream(stream)
            for generator, copied in zip(generators, copies, strict=True):
                generator.graphsafe_set_state(copied)
            self._optimizer.zero_grad(set_to_none=True)
            undo_rest()
            for ours, kept in ((self.losses_S, losses_S), (self.total, total), (self._step_1, step_1)):
                ours.copy_(kept)

        return undo

    @contextmanager
    def _rates_in_tensors(self) -> Iterator[None]:
        """Let the optimiser read its learning rates from the device; schedules and checkpoints see numbers."""
        groups = self._optimizer.param_groups
        numbers = [group["lr"] for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            yield
        finally:
            for group, number in zip(groups, numbers, strict=True):
                group["lr"] = number
