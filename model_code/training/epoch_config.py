"""Settings that all configs of epoch-based trainings share: clipping and engine."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from model_code.errors import UsageError
from model_code.training.run_config import PositiveFloat, RunConfig


class EngineSettings(BaseModel):
    """How a step is computed.

    `parts` and `pictures=disk` change what is computed, and make a run `custom`; with all others results differ by
    rounding only, and a run stays what its recipe documents.

    Attributes:
        precision: Of the forward pass; `bfloat16` keeps weights, BatchNorm, loss and optimiser in float32. `auto` is
            bfloat16 on a device that has instructions for it (CUDA of compute capability 8.0 and newer, a CPU with
            AVX512_BF16 or AMX), else float32. `tf32` is float32 whose products round their factors to TF32 (CUDA).
        memory_format: Of the images that the network computes with; on CUDA of its weights as well. `auto` is
            `channels_last` (docs/benchmarks.md).
        compile: `on` compiles the network with torch.compile, `cuda_graphs` records its kernels as well; the first
            steps then take minutes, and runs of the same network and shapes in one process share the code. Short runs
            lose by it. `step` records the whole step in one CUDA graph, augmentation, gradients, optimiser and average
            included, without compiling; what cannot be recorded is computed eagerly, which a line says. Streamed images
            and a CPU compute it eagerly.
        kernels: Of CUDA: `deterministic`, or the `fastest` that cuDNN finds by measuring, whose sums differ from run to
            run.
        pictures: `resident` keeps the images on the device; `streamed` keeps them in the host's memory and copies
            each batch, pinned, while the one before is computed. `disk` leaves them on disk and reads a window of 64 MB
            ahead: two windows are in memory, and about 100 bytes for each image. The order is another one: images are
            shuffled within a window, whose blocks of 256 kB come from all over the files. SimSiam keeps the features of
            the labelled images too; pseudo-labels need the images in memory. `auto` streams where the images of the
            run, for SimSiam two copies of them, would take more than half of a CUDA device's free memory.
        readers: Threads that read images from disk; the order does not depend on them.
        parts: Into how many parts, one after the other, a batch is divided to save memory; the gradients are those of
            the whole batch, but BatchNorm sees a part at a time. A run of one process that meets the end of a CUDA
            device's memory doubles it by itself and says so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "float32"
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    compile: Literal["off", "on", "cuda_graphs", "step"] = "off"
    kernels: Literal["deterministic", "fastest"] = "deterministic"
    pictures: Literal["auto", "resident", "streamed", "disk"] = "auto"
    readers: int = Field(default=1, ge=1, le=64)
    parts: int = Field(default=1, ge=1)


class EpochConfig(RunConfig):
    """Settings of every run of epochs, beside those of `RunConfig`.

    Attributes:
        clip_norm: Gradients are scaled down to this L2 norm over all parameters where they are longer; None leaves
            them.
        engine: Settings of the computation of a step.
    """

    clip_norm: PositiveFloat | None = None
    engine: EngineSettings = EngineSettings()


def check_batch(count: int, batch_size: int) -> None:
    """Refuse fewer training images than one batch.

    Raises:
        UsageError: There are fewer.
    """
    if count < batch_size:
        raise UsageError(
            f"{count} training images are fewer than one batch of {batch_size}; "
            "raise --limit-train or lower --set batch_size"
        )
