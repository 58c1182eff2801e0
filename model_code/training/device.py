"""Which device a run uses, how it is seeded, and what the machine is called in records."""

import os
import platform

import torch

from model_code.errors import TrainingError


def choose_device(wanted: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`; `auto` is CUDA when there is one.

    Raises:
        TrainingError: CUDA is wanted and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device=cuda, but torch sees no CUDA device; use --set device=cpu or see `darkroom doctor`")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def describe_device(device: torch.device) -> str:
    """Return the device's name for people, e.g. `cpu (x86_64, 2 threads)`."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def seed_everything(seed: int, device: torch.device) -> torch.Generator:
    """Seed torch and ask for deterministic algorithms; return the generator of order and augmentation.

    On a CPU with the same library versions and number of threads, equal seeds then give equal bits.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    torch.manual_seed(seed)
    return torch.Generator(device=device).manual_seed(seed)
