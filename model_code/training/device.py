"""Device of a run, seeding, and the machine's name in records."""

import ctypes
import hashlib
import os
import platform

import torch

from model_code.errors import TrainingError

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 2**30


def choose_device(wanted: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`; `auto` is CUDA when there is one.

    Processes that torchrun started take a CUDA device each.

    Raises:
        TrainingError: CUDA is wanted and there is none, or fewer than processes.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device=cuda, but torch sees no CUDA device; use --set device=cpu or see `darkroom doctor`")
    kind = name_device(wanted)
    if kind == "cuda":
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if local_rank >= torch.cuda.device_count():
            raise TrainingError(
                f"process {local_rank + 1} of this machine has no CUDA device of its own, there are only "
                f"{torch.cuda.device_count()}; lower --nproc-per-node"
            )
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(kind)


def name_device(wanted: str) -> str:
    """Return which of `cpu` and `cuda` is meant by `auto`, `cpu` or `cuda`; the device itself stays untouched."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def keep_freed_memory() -> None:
    """Let the process reuse the memory of freed tensors instead of giving it back and getting it again, page by page.

    Without it an epoch of a ResNet-18 took 5 to 10 % longer on two cores; with it peak memory is larger where batches
    differ in size (docs/benchmarks.md). It holds for the rest of the process; malloc's own settings in the environment
    go first.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has it
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def describe_device(device: torch.device) -> str:
    """Return the device's name for people, e.g. `cpu (x86_64, 2 threads)`."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"cpu ({platform.machine()}, {threads} thread{'' if threads == 1 else 's'})"


def seed_everything(
    seed: int, device: torch.device, *, is_fastest: bool = False, has_tf32: bool = False
) -> torch.Generator:
    """Seed torch and choose its algorithms; return the generator of order and augmentation.

    On a CPU with the same library versions and number of threads, equal seeds then give equal bits.

    Args:
        seed: Seed of all generators.
        device: Device that computes.
        is_fastest: True if CUDA may take kernels whose sums differ from run to run, the fastest that cuDNN measures.
        has_tf32: True if CUDA rounds the factors of float32 products to TF32, in cuBLAS and cuDNN.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    is_cpu = device.type == "cpu"
    torch.use_deterministic_algorithms(is_cpu or not is_fastest, warn_only=not is_cpu)
    torch.backends.cudnn.benchmark = is_fastest
    # torch's own defaults differ: off in cuBLAS, on in cuDNN.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = has_tf32
    # Else every new tensor is filled first, which costs time and changes nothing where all of it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(seed)
    return torch.Generator(device=device).manual_seed(seed)


def name_lock(device: str) -> str:
    """Return the name of the file that a training locks while it uses `cpu` or `cuda`."""
    return f"device-{device}.lock"


def derive_seed(seed: int, epoch: int, step: int) -> int:
    """Return a seed for a place in a run, in [0, 2^63)."""
    digest = hashlib.sha256(f"{seed} {epoch} {step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
