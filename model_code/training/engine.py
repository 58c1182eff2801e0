"""Execution of a step on the hardware at hand: precision, memory layout, compiled code, parts of a batch."""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise, starmap
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from model_code.errors import TrainingError, UsageError, first_line
from model_code.models.image_input import ImageInput
from model_code.training.epoch_config import EpochConfig
from model_code.training.processes import Processes

# BatchNorm needs two images.
SMALLEST_PART = 2
MOST_COMPILED = 256
Model = TypeVar("Model", bound=nn.Module)
COMPILE_MODES = {"on": "default", "cuda_graphs": "reduce-overhead"}


@dataclass(frozen=True)
class Engine:
    """What a device does of the engine's settings; `choose_engine` makes one.

    Attributes:
        device: Device that computes.
        precision: Precision of the forward pass: float32 or bfloat16.
        memory_format: Memory format of the images that the network computes with; on CUDA of its weights as well.
        compile: `off`, `on`, `cuda_graphs` or `step`.
        parts: Number of micro-batches of a batch.
        has_tf32: True if CUDA rounds the factors of float32 products to TF32.
        is_fastest: True if CUDA may take kernels whose sums differ from run to run.
    """

    device: torch.device
    precision: torch.dtype
    memory_format: torch.memory_format
    compile: str
    parts: int
    has_tf32: bool = False
    is_fastest: bool = False

    def describe(self) -> str:
        """Return the choice in a few words, for people."""
        compiled = {
            "off": "eager",
            "on": "compiled",
            "cuda_graphs": "compiled with CUDA graphs",
            "step": "whole step in one CUDA graph" if self.device.type == "cuda" else "whole step, eager",
        }[self.compile]
        layout = "channels last" if self.is_channels_last else "contiguous"
        parts = f", batch in {self.parts} parts" if self.parts > 1 else ""
        kernels = "" if self.device.type != "cuda" else f", {'fastest' if self.is_fastest else 'deterministic'} kernels"
        precision = "tf32" if self.has_tf32 else str(self.precision).removeprefix("torch.")
        return f"{precision}, {layout}, {compiled}{kernels}{parts}"

    @property
    def is_channels_last(self) -> bool:
        """Whether images and weights are laid out with their channels last."""
        return self.memory_format == torch.channels_last

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which networks compute in the precision."""
        return autocast(self.device, self.precision, has_cache=self.compile != "step")

    def lay_out(self, model: Model) -> Model:
        """Return the model on the device, its images, and on CUDA its weights as well, in the memory format."""
        for module in model.modules():
            if isinstance(module, ImageInput):
                module.is_channels_last = self.is_channels_last
        model = model.to(self.device)
        return model.to(memory_format=self.memory_format) if self.device.type == "cuda" else model

    def compile_model(self, model: nn.Module) -> Callable[..., Any]:
        """Return a function that computes what the model does, compiled where that is chosen; weights are shared."""
        if self.compile not in COMPILE_MODES:
            return model
        # torch gives up compiling one function after 8 kinds of network; a process may train every recipe.
        torch._dynamo.config.recompile_limit = MOST_COMPILED
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        return torch.compile(model, mode=COMPILE_MODES[self.compile], dynamic=False)


def choose_engine(config: EpochConfig, processes: Processes) -> Engine:
    """Return what this process's device does; every `auto` is decided here.

    Raises:
        UsageError: The hardware, or what is installed, lacks an option, or the batch cannot be divided as is wanted.
    """
    settings, device = config.engine, processes.device
    _check_division(config, processes.count)
    if settings.precision == "tf32" and device.type != "cuda":
        raise UsageError(
            f"engine.precision=tf32 needs a CUDA device and this run is on {device.type}; "
            "give --set engine.precision=float32 or leave it out"
        )
    _check_compile(settings.compile, device, processes.count)
    return Engine(
        device=device,
        precision=choose_precision("engine.precision", settings.precision, device),
        memory_format=torch.contiguous_format if settings.memory_format == "contiguous" else torch.channels_last,
        compile=settings.compile,
        parts=settings.parts,
        has_tf32=settings.precision == "tf32",
        is_fastest=settings.kernels == "fastest",
    )


def choose_precision(setting: str, wanted: str, device: torch.device) -> torch.dtype:
    """Return the precision of a forward pass.

    Args:
        setting: Name of the setting, for the message.
        wanted: `auto`, `float32`, `tf32` or `bfloat16`.
        device: Device that computes.

    Raises:
        UsageError: A CUDA device does not compute bfloat16.
    """
    has_bfloat16 = has_bfloat16_instructions(device)
    if wanted == "bfloat16" and device.type == "cuda" and not has_bfloat16:
        raise UsageError(
            f"{setting}=bfloat16, but {torch.cuda.get_device_name(device)} does not compute it; "
            f"give --set {setting}=float32 or leave it out"
        )
    is_half = wanted == "bfloat16" or (wanted == "auto" and has_bfloat16)
    return torch.bfloat16 if is_half else torch.float32


def autocast(device: torch.device, precision: torch.dtype, has_cache: bool = True) -> AbstractContextManager[None]:
    """Return the context in which networks on a device compute in a precision; a recorded one keeps no cast weights."""
    is_half = precision == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=is_half, cache_enabled=has_cache)


def has_bfloat16_instructions(device: torch.device) -> bool:
    """Return True if a device has instructions for bfloat16: 1.4 to 1.8 times as fast on a CPU (docs/benchmarks.md)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class GradientStep:
    """Moves the weights by the gradients of one batch after the other.

    Args:
        config: Clipping.
        engine: Result of `choose_engine`.
        network: Whose parameters the optimiser moves.
        optimizer: Moves them.
        processes: Processes that share the batch.

    Attributes:
        parts: Number of micro-batches of a batch; the device's memory raises it.
    """

    def __init__(
        self, config: EpochConfig, engine: Engine, network: nn.Module, optimizer: Optimizer, processes: Processes
    ) -> None:
        self._clip_norm, self._engine = config.clip_norm, engine
        self._optimizer, self._processes = optimizer, processes
        self._parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.parts = engine.parts

    def take(self, count: int, compute: Callable[[slice], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Learn from a batch; where a CUDA device's memory does not hold its gradients, in more parts from then on.

        BatchNorm's running statistics move with each part, and have moved with those of a try that failed.

        Args:
            count: Images of this process's share of the batch.
            compute: Some of these images -> their mean loss and what the network returned, [images, ...].

        Returns:
            The mean loss of the whole batch, and the outputs for this process's share, detached.

        Raises:
            TrainingError: Not even the smallest parts fit into memory, or the optimiser does not.
        """
        while True:
            try:
                loss, outputs = self._compute_gradients(count, compute)
                break
            except torch.OutOfMemoryError as error:
                if self._is_recording():
                    raise
                reason = first_line(error)[:100]
            # Outside of the handler, which holds on to what the failed try has computed.
            self._divide(count, reason)
        # Not tried again: the optimiser may have begun to move the weights.
        try:
            if self._clip_norm is not None:
                clip_grad_norm_(self._parameters, self._clip_norm)
            self._optimizer.step()
        except torch.OutOfMemoryError as error:
            if self._is_recording():
                raise
            raise TrainingError(
                "the device's memory does not hold what the optimiser keeps of each weight; take a smaller network, or "
                f"give --set engine.pictures=streamed ({first_line(error)[:100]})"
            ) from error
        return loss, outputs

    def _is_recording(self) -> bool:
        return self._engine.device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def _compute_gradients(
        self, count: int, compute: Callable[[slice], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        engine = self._engine
        self._optimizer.zero_grad(set_to_none=True)
        if engine.compile == "cuda_graphs":
            torch.compiler.cudagraph_mark_step_begin()
        loss, outputs = torch.zeros((), device=engine.device), []
        for part in _divide_evenly(count, self.parts):
            with engine.autocast():
                part_loss, part_outputs = compute(part)
            weighted = part_loss * ((part.stop - part.start) / count)
            weighted.backward()
            loss += weighted.detach()
            outputs.append(part_outputs.detach())
        return self._processes.average_gradients(self._parameters, loss), torch.cat(outputs)

    def _divide(self, count: int, reason: str) -> None:
        """Double the parts for the next try."""
        self._optimizer.zero_grad(set_to_none=True)
        parts = self.parts * 2
        if count // parts < SMALLEST_PART or self._processes.count > 1:
            raise TrainingError(
                f"the device's memory does not hold {count // self.parts} images of a batch at once; lower --set "
                "batch_size, or give --set engine.parts=N for N parts of a batch one after the other "
                f"({reason})"
            )
        self.parts = parts
        if self._engine.device.type == "cuda":
            torch.cuda.empty_cache()
        print(
            f"the device's memory is full: from now on each batch of {count} is computed in {parts} parts; its "
            "gradients are summed, BatchNorm sees a part at a time",
            flush=True,
        )


def _divide_evenly(count: int, parts: int) -> list[slice]:
    edges = [count * part // parts for part in range(parts + 1)]
    return list(starmap(slice, pairwise(edges)))


def _check_division(config: EpochConfig, process_count: int) -> None:
    if config.batch_size % process_count:
        raise UsageError(
            f"a batch of {config.batch_size} cannot be shared evenly by {process_count} processes; "
            "change --set batch_size or --nproc-per-node"
        )
    share = config.batch_size // process_count
    if share // config.engine.parts < SMALLEST_PART:
        raise UsageError(
            f"engine.parts={config.engine.parts} leaves fewer than {SMALLEST_PART} of {share} images for a part, and "
            f"BatchNorm needs so many; at most {share // SMALLEST_PART} parts are allowed"
        )


def _check_compile(wanted: str, device: torch.device, process_count: int) -> None:
    if wanted == "off":
        return
    if wanted == "cuda_graphs" and device.type != "cuda":
        raise UsageError(
            f"engine.compile=cuda_graphs needs a CUDA device and this run is on {device.type}; "
            "give --set engine.compile=on or leave it out"
        )
    if process_count > 1:
        raise UsageError(
            f"engine.compile={wanted} needs one process and there are {process_count}; "
            "leave it out, or start without torchrun"
        )
    if wanted == "step":
        return
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UsageError(
            f"engine.compile={wanted} needs the C++ compiler {compiler}, which is not installed; "
            "install it (Debian: apt install g++) or leave the setting out"
        )
