"""Loop of epochs: resuming, steps, the best and the last checkpoint, stopping on request.

Shape suffixes: N = images of an epoch, B = images of a batch, H = height, W = width, C = the three colour channels,
S = steps of an epoch.
"""

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from model_code.data.disk_images import DiskImages
from model_code.errors import DivergedError, TrainingError, first_line
from model_code.training import checkpoints
from model_code.training.batches import is_streamed, iterate_batches
from model_code.training.checkpoint_writer import CheckpointWriter, Snapshot, copy_tensors
from model_code.training.device import derive_seed, seed_everything
from model_code.training.engine import Engine, GradientStep, choose_engine
from model_code.training.epoch_config import EpochConfig
from model_code.training.processes import Processes
from model_code.training.results import Callback, DeviceChange, Epoch, TrainingResult
from model_code.training.whole_step import WholeStep

STEPS_BETWEEN_CHECKS_ON_CUDA = 50


@dataclass
class Progress:
    """How far an epoch is.

    Attributes:
        order_N: Indices of the images in the order in which they are visited.
        losses_S: Mean loss of each step; 0 where it is still to come.
        total: Sum over the steps of whatever else the loop adds up: this process's share of it.
        learning_rate: At the first step.
        step: Steps done.
        seconds: Time of the steps before the last interruption.
    """

    order_N: Tensor
    losses_S: Tensor
    total: Tensor
    learning_rate: float
    step: int = 0
    seconds: float = 0

    @property
    def mean_loss(self) -> float:
        """Over the steps of a whole epoch."""
        return float(self.losses_S.mean())


class EpochLoop(ABC, Generic[Epoch]):
    """A run that trains in epochs; a subclass says what an epoch and a step are.

    A run that was interrupted continues from its last checkpoint and ends, on a CPU, with the same bits as one that was
    not. It may continue on another kind of device, with new random numbers.

    Args:
        config: All settings.
        epochs: Number of epochs.
        images_NHWC: uint8 images to learn from, on the device or streamed to it from the host or from disk.
        run_dir: Folder of checkpoints; created when missing.
        callbacks: Told about each step and epoch, in order.
        processes: Processes that train together, and the device of this one.
        engine: Result of `choose_engine`; None chooses it here.

    Raises:
        TrainingError: The checkpoint in `run_dir` is damaged or belongs to another config.
        UsageError: The hardware lacks what `config.engine` wants, or the batch cannot be divided.
    """

    epoch_type: type[Epoch]
    rate_setting: str  # the learning rate's name in the config, for the remedy
    is_last_kept = False  # whether the last epoch counts as the best
    network: nn.Module
    optimizer: Optimizer
    gradient_step: GradientStep

    def __init__(
        self,
        config: EpochConfig,
        epochs: int,
        images_NHWC: Tensor | DiskImages,
        run_dir: Path,
        callbacks: Sequence[Callback],
        processes: Processes,
        engine: Engine | None,
    ) -> None:
        self.epochs, self.run_dir, self.callbacks, self.processes = epochs, run_dir, callbacks, processes
        self.device = processes.device
        self.engine = engine or choose_engine(config, processes)
        self._images_NHWC, self._batch_size, self._readers = images_NHWC, config.batch_size, config.engine.readers
        self.steps = len(images_NHWC) // config.batch_size
        self._is_streamed = is_streamed(images_NHWC, config.engine.pictures, self.device)
        if self._is_streamed and self.engine.compile == "step" and processes.is_first:
            print("engine.compile=step: the images are streamed, so each step is computed eagerly", flush=True)
        self._rate, self._dataset = float(getattr(config, self.rate_setting)), config.dataset
        self._config_sha256, self._seed = config.sha256(), config.seed
        self.generator = seed_everything(
            config.seed, self.device, is_fastest=self.engine.is_fastest, has_tf32=self.engine.has_tf32
        )
        self.state = checkpoints.load_state(run_dir, self._config_sha256)
        self.history: list[Epoch] = []
        self._seconds_before = 0.0
        self.best_epoch = 0
        self._progress: Progress | None = None
        self._best: Mapping[str, Tensor] | None = None
        self._whole_step: WholeStep | None = None

    @property
    def kept_network(self) -> nn.Module:
        """The network whose weights are saved."""
        return self.network

    @abstractmethod
    def run_epoch(self, epoch: int) -> Epoch:
        """Train with `learn` and, where it is due, validate."""

    def begin_step(self, epoch: int, step: int) -> None:
        """Do what the host does before a step: `epoch` is counted from 1, `step` from 0."""

    @abstractmethod
    def compute_step(self, images_BHWC: Tensor, chosen_B: Tensor, is_last: bool) -> tuple[Tensor, Tensor]:
        """Learn from a batch, without a look at what the device has computed.

        Args:
            images_BHWC: uint8 images on the device.
            chosen_B: Their indices.
            is_last: Whether it is the epoch's last step, in which such a look is allowed.

        Returns:
            The mean loss, and what this process adds to the epoch's total.
        """

    def end_step(self, epoch: int, step: int) -> None:
        """Do what the host does after a step."""

    def is_saved(self, _epoch: int) -> bool:
        """Whether an epoch's checkpoint is written even when it is not the best."""
        return True

    def save_more(self) -> dict[str, Any]:
        """Return what else the next step depends on: state dicts for `TrainingState`'s `average` and `schedule`."""
        return {"average": None, "schedule": {}}

    def load_more(self, state: checkpoints.TrainingState) -> None:
        """Take up what `save_more` returned."""

    def train(self) -> TrainingResult[Epoch]:
        """Run every epoch that is left and return the whole run.

        Raises:
            KeyboardInterrupt: A callback wanted the run to stop; its state is kept.
        """
        self._resume()
        self._writer = CheckpointWriter(self.run_dir, self.device, self.best_epoch)
        try:
            self._run_epochs()
        except BaseException:
            # What ended the run is what is told.
            with suppress(Exception):
                self._writer.close()
            raise
        self._writer.close()
        return TrainingResult(
            history=tuple(self.history),
            best_epoch=self.best_epoch,
            best_weights=checkpoints.best_file(self.run_dir, self.best_epoch),
            last_weights=self.run_dir / checkpoints.LAST_FILE,
            parts=self.gradient_step.parts,
            engine=self._describe_engine(),
            seconds_before=self._seconds_before,
        )

    def _describe_engine(self) -> str:
        """Return how the steps were computed, which is eagerly where a whole step could not be recorded."""
        engine, whole = replace(self.engine, parts=self.gradient_step.parts), self._whole_step
        if engine.compile != "step":
            return engine.describe()
        replayed = 0 if whole is None else whole.replayed
        described = (engine if replayed else replace(engine, compile="off")).describe()
        if self._is_streamed:
            return described
        return f"{described}; {replayed} of {0 if whole is None else whole.taken} steps replayed"

    def _run_epochs(self) -> None:
        if not self.processes.is_first:
            # What the network draws, such as drop-path's masks, is each process's own; and other than before a resume.
            step = 0 if self._progress is None else self._progress.step
            torch.manual_seed(hash((torch.initial_seed(), self.processes.rank, len(self.history), step)))
        for epoch in range(len(self.history) + 1, self.epochs + 1):
            metrics = self.run_epoch(epoch)
            self.history.append(metrics)
            is_saved = self._save(metrics)
            self._writer.write_due()
            for callback in self.callbacks:
                callback.on_epoch_end(metrics)
            if self._is_stop_wanted():
                self._stop(is_saved)

    def learn(self, epoch: int) -> tuple[Progress, int]:
        """Visit the images once, or what an interruption left of them.

        Returns:
            The whole epoch, its total that of all processes, and how many images were visited now.
        """
        progress, self._progress = self._progress or self._begin_epoch(), None
        first = progress.step
        self.network.train()
        try:
            self._take_steps(epoch, progress)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the device's memory does not hold the augmentation of {self._batch_size} images at once; lower --set "
                f"batch_size, or give --set engine.pictures=streamed ({first_line(error)[:100]})"
            ) from error
        progress.total = self.processes.add(progress.total)
        return progress, (progress.step - first) * self._batch_size

    def _take_steps(self, epoch: int, progress: Progress) -> None:
        start_s = time.perf_counter()
        computing = self._compute_whole(progress) if self._has_whole_step() else self._compute_batches(progress)
        while progress.step < self.steps:
            self.begin_step(epoch, progress.step)
            next(computing)
            self.end_step(epoch, progress.step)
            progress.step += 1
            if self._is_checked(progress.step):
                self._report_step(epoch, progress)
                if self._is_stop_wanted():
                    # The first process takes up the total of all.
                    progress.total = self.processes.add(progress.total)
                    progress.seconds += time.perf_counter() - start_s
                    self._progress = progress
                    self._stop(is_saved=False)

    def _compute_batches(self, progress: Progress) -> Iterator[None]:
        """Compute a step with each batch, which is gathered before it."""
        for chosen_B, images_BHWC in iterate_batches(
            self._images_NHWC,
            progress.order_N,
            self._batch_size,
            self.device,
            first=progress.step,
            is_ahead=self._is_streamed,
            readers=self._readers,
        ):
            loss, share = self.compute_step(images_BHWC, chosen_B, progress.step == self.steps - 1)
            progress.losses_S[progress.step] = loss
            progress.total += share
            yield

    def _has_whole_step(self) -> bool:
        """Whether a step is computed as a whole, gathering included."""
        if self.engine.compile != "step" or self._is_streamed or isinstance(self._images_NHWC, DiskImages):
            return False
        if self._whole_step is None:
            self._whole_step = WholeStep(
                *(self._images_NHWC, self._batch_size, self.steps),
                *(self.compute_step, self.optimizer, self.generator),
            )
        return True

    def _compute_whole(self, progress: Progress) -> Iterator[None]:
        """Compute one whole step after the other; the progress is in the tensors that they write."""
        whole = self._whole_step
        assert whole is not None, "made by `_has_whole_step`"
        whole.begin(progress.order_N, progress.losses_S, progress.total, progress.step)
        progress.order_N, progress.losses_S, progress.total = whole.order_N, whole.losses_S, whole.total
        trained = tuple(parameter.requires_grad for parameter in self.network.parameters())
        while True:
            whole.take(progress.step, (trained, self.gradient_step.parts), self._prepare_recording)
            yield

    def _prepare_recording(self) -> Callable[[], None]:
        """Wait for the writer; return what puts weights, optimiser, average and random numbers back as they are now."""
        self._writer.flush()
        state = copy.deepcopy(self._make_state())

        def undo() -> None:
            self._load(state)
            restore_randomness(state, self.generator, self._seed)

        return undo

    def draw_order(self) -> Tensor:
        """Return the images of an epoch in the order of their visits, int64 [N]."""
        return torch.randperm(len(self._images_NHWC), generator=self.generator, device=self.device)

    def diverged(self, what: str) -> DivergedError:
        """Return the error of a loss that is not finite."""
        return DivergedError(
            f"{what}; lower the learning rate (--set {self.rate_setting}={min(self._rate / 10, 1):g}), or if that does "
            f"not help look at the images (darkroom data check {self._dataset}); "
            + (f"the checkpoint before stays in {self.run_dir}" if self.history else "no epoch was finished before")
        )

    def _begin_epoch(self) -> Progress:
        order_N = self.draw_order()
        if isinstance(self._images_NHWC, DiskImages):
            order_N = self._images_NHWC.shuffle_in_windows(order_N, self._batch_size, self.generator)
        return Progress(
            order_N=order_N,
            losses_S=torch.zeros(self.steps, device=self.device),
            total=torch.zeros((), device=self.device),
            learning_rate=float(self.optimizer.param_groups[0]["lr"]),
        )

    def _is_checked(self, steps_done: int) -> bool:
        """Whether loss and callbacks are looked at now: on CUDA only now and then, since that waits for the device."""
        is_cuda = self.device.type == "cuda"
        return not is_cuda or steps_done % STEPS_BETWEEN_CHECKS_ON_CUDA == 1 or steps_done == self.steps

    def _report_step(self, epoch: int, progress: Progress) -> None:
        """Check the losses and tell the callbacks."""
        losses_S = progress.losses_S[: progress.step]
        if not losses_S.isfinite().all():
            bad = int((~losses_S.isfinite()).nonzero()[0])
            raise self.diverged(f"the loss became {float(losses_S[bad])} at step {bad + 1} of epoch {epoch}")
        for callback in self.callbacks:
            callback.on_step(epoch, progress.step, self.steps, float(losses_S[-1]))

    def _is_stop_wanted(self) -> bool:
        """Whether a callback of any process wants to stop: all of them learn it at the same step."""
        wanted = any(callback.wants_stop for callback in self.callbacks)
        return bool(self.processes.add(torch.tensor(float(wanted))))

    def _stop(self, is_saved: bool) -> None:
        if self.processes.is_first:
            self._writer.flush()
            if not is_saved:
                checkpoints.save_state(self.run_dir, self._make_state())
        # torchrun gives the first process little time once another one has ended.
        self.processes.tell("the state is on disk")
        raise KeyboardInterrupt

    def _save(self, metrics: Epoch) -> bool:
        """Have weights and state written where they are due; return whether they are."""
        best = self.history[self.best_epoch - 1].score if self.best_epoch else None
        is_best = self.is_last_kept or (
            metrics.score is not None and metrics.score > (-math.inf if best is None else best)
        )
        if is_best:
            self.best_epoch = metrics.epoch
        is_due = is_best or self.is_saved(metrics.epoch)
        if self.processes.is_first and is_due:
            self._write(is_best)
        return is_due

    def _write(self, is_best: bool) -> None:
        """Have a copy written beside the next steps, or, where memory has no room for one, all before them."""
        weights = self.kept_network.state_dict()
        try:
            last = copy_tensors(weights)
            snapshot = Snapshot(copy.deepcopy(self._make_state()), last, last if is_best else self._best)
        except torch.OutOfMemoryError:
            self._writer.write(Snapshot(self._make_state(), weights, weights if is_best else self._best))
            self._best = None
            return
        self._best = snapshot.best
        self._writer.keep(snapshot)

    def _make_state(self) -> checkpoints.TrainingState:
        is_cuda = self.device.type == "cuda"
        return checkpoints.TrainingState(
            config_sha256=self._config_sha256,
            epoch=len(self.history),
            best_epoch=self.best_epoch,
            network=self.network.state_dict(),
            optimizer=self.optimizer.state_dict(),
            generator=self.generator.get_state(),
            torch_rng=torch.get_rng_state(),
            cuda_rng=torch.cuda.get_rng_state(self.device) if is_cuda else None,
            history=[asdict(epoch) for epoch in self.history],
            progress=None if self._progress is None else vars(self._progress),
            parts=self.gradient_step.parts,
            **self.save_more(),
        )

    def _load(self, state: checkpoints.TrainingState) -> None:
        self.network.load_state_dict(state.network)
        load_optimizer(self.optimizer, state.optimizer)
        self.load_more(state)

    def _resume(self) -> None:
        state, self.state = self.state, None
        if state is None:
            return
        if self.processes.is_first:
            checkpoints.remove_other_best(self.run_dir, state.best_epoch)
        self._load(state)
        self.gradient_step.parts = max(self.gradient_step.parts, state.parts)
        change = restore_randomness(state, self.generator, self._seed)
        self.history = [self.epoch_type(**epoch) for epoch in state.history]
        self._seconds_before = sum(epoch.seconds for epoch in self.history)
        self.best_epoch = state.best_epoch
        if state.progress is not None:
            progress = Progress(**state.progress)
            self._progress = Progress(
                progress.order_N.to(self.device),
                progress.losses_S.to(self.device),
                progress.total.to(self.device) * self.processes.is_first,
                progress.learning_rate,
                progress.step,
                progress.seconds,
            )
            self._seconds_before += progress.seconds
        if change is not None:
            self._tell_change(change, state)
        for callback in self.callbacks:
            callback.on_resume(tuple(self.history))
            if self._progress is not None:
                callback.on_resume_epoch(len(self.history) + 1, self._progress.step, self.steps)

    def _tell_change(self, change: DeviceChange, state: checkpoints.TrainingState) -> None:
        if self.processes.is_first:
            step = 0 if state.progress is None else state.progress["step"]
            print(
                f"the run began on {change.before} and continues on {change.now}: order and augmentation are drawn "
                f"anew, by seed {self._seed}, epoch {state.epoch + 1} and step {step}",
                flush=True,
            )
        for callback in self.callbacks:
            callback.on_device_change(change)


def restore_randomness(state: checkpoints.TrainingState, generator: torch.Generator, seed: int) -> DeviceChange | None:
    """Continue the random numbers of a state; on another kind of device start new ones.

    Args:
        state: What an interrupted run left.
        generator: Generator of order and augmentation, on the run's device.
        seed: Seed of the run.

    Returns:
        The change of the kind of device; None if it is the same.
    """
    before, now = "cpu" if state.cuda_rng is None else "cuda", generator.device.type
    if before == now:
        generator.set_state(state.generator)
        torch.set_rng_state(state.torch_rng)
        if state.cuda_rng is not None:
            torch.cuda.set_rng_state(state.cuda_rng, generator.device)
        return None
    step = 0 if state.progress is None else state.progress["step"]
    derived = derive_seed(seed, state.epoch, step)
    generator.manual_seed(derived)
    torch.manual_seed(derived)
    return DeviceChange(before, now, state.epoch)


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimiser's state from any kind of device; which kernels it uses stays its own."""
    kernels = ("fused", "foreach", "capturable")
    groups = [
        {**saved, **{name: own[name] for name in kernels if name in own}}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
