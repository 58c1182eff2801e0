"""Checkpoints of a run on disk, each file written in one atomic step.

    best-<epoch>.safetensors    weights of the epoch that is kept, by default that of the best validation accuracy
    last.safetensors            weights after the last finished epoch
    state.pt                    all that is needed to go on, also in the middle of an epoch that a signal ended; removed
                                when the run is complete

state.pt is the truth: it is written after the weights and names the best epoch, so a process killed at any moment
leaves a state that belongs together. `checkpoint_writer` writes all three beside the training.
"""

import hashlib
import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from model_code.disk import write_atomically
from model_code.errors import DownloadError, TrainingError, first_line
from model_code.models.networks import LAST_LAYERS
from model_code.models.weight_names import translate
from model_code.training.config import TORCHVISION
from model_code.training.run_folder import STATE_FILE

LAST_FILE = "last.safetensors"


# What torch.load and safetensors raise over bytes that are no weights: their readers check little themselves.
_UNREADABLE = (
    *(OSError, EOFError, RuntimeError, UnpicklingError, SafetensorError),
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError, OverflowError, MemoryError, struct.error),
)


# Keys under which training scripts keep the weights of a checkpoint, and what DataParallel puts before each name.
_WRAPPERS, _PARALLEL_PREFIX = ("state_dict", "model_state_dict", "model"), "module."


@dataclass(frozen=True)
class TrainingState:
    """Everything that the next step depends on.

    Attributes:
        config_sha256: SHA-256 of the config that the state belongs to.
        epoch: Finished epochs.
        best_epoch: The epoch that is kept so far, counted from 1.
        network: State dict.
        average: State dict of the weights' moving average or of Lookahead, or None.
        optimizer: State dict.
        schedule: State dict.
        generator: State of the generator of order and augmentation.
        torch_rng: State of torch's global generator.
        history: One dict of metrics for each finished epoch.
        cuda_rng: State of the CUDA device's global generator; None on a CPU.
        progress: Progress of the epoch after them, as `Progress` has it; None between epochs.
        parts: Micro-batches of a batch, which the device's memory may have raised.
    """

    config_sha256: str
    epoch: int
    best_epoch: int
    network: dict[str, Any]
    average: dict[str, Any] | None
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    generator: Tensor
    torch_rng: Tensor
    history: list[dict[str, Any]]
    cuda_rng: Tensor | None = None
    progress: dict[str, Any] | None = None
    parts: int = 1


def best_file(run_dir: Path, epoch: int) -> Path:
    """Return where the weights of the best epoch are kept."""
    return run_dir / f"best-{epoch:04d}.safetensors"


def remove_other_best(run_dir: Path, epoch: int) -> None:
    """Remove the weights of every epoch but the best, also what a killed process left."""
    for file in run_dir.glob("best-*.safetensors"):
        if file != best_file(run_dir, epoch):
            file.unlink(missing_ok=True)


def save_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """Write the state dict of a network as safetensors; equal weights give equal bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_atomically(file, safetensors.torch.save(tensors))


def load_weights(network: nn.Module, file: Path) -> None:
    """Load weights that `save_weights` wrote.

    Raises:
        TrainingError: The file is missing, damaged, or belongs to another network.
    """
    try:
        network.load_state_dict(safetensors.torch.load_file(file))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise TrainingError(f"{file} does not hold the weights of this network: {first_line(error)}") from error


def load_pretrained(network: nn.Module, source: str) -> list[str]:
    """Load pretrained weights of the same architecture, all but the last layer (`fc`, `head` or `heads`).

    Names may be those of torchvision, timm or our own networks (`model_code.models.weight_names`).

    Args:
        network: Is changed in place.
        source: A .safetensors file, a file of torch.save, or `torchvision` for its ImageNet weights (a download).

    Returns:
        Lines for people: how much matched, what was left out, what starts anew.

    Raises:
        TrainingError: The file is missing, is no weights file, or does not fit.
        DownloadError: The download failed.
    """
    given = download_torchvision() if source == TORCHVISION else _read_state_dict(Path(source))
    given_names = translate(given)
    weights = {name: given[key] for name, key in given_names.items()}
    own_state = network.state_dict()
    own = translate(own_state)
    # The last layer belongs to the old classes; BatchNorm's counter is not in files from before torch 0.4.1.
    wanted = {
        name: own_state[key]
        for name, key in own.items()
        if key.partition(".")[0] not in LAST_LAYERS
        and not name.endswith("relative_position_index")
        and not (name.endswith("num_batches_tracked") and name not in weights)
    }
    missing = sorted(own[name] for name in wanted.keys() - weights.keys())
    wrong = sorted(own[name] for name in wanted.keys() & weights.keys() if wanted[name].shape != weights[name].shape)
    if missing or wrong:
        raise TrainingError(
            f"pretrained_weights={source}: {len(missing)} layers are missing and {len(wrong)} have another shape "
            f"(first: {(missing + wrong)[0]}); give weights of the same network"
        )
    network.load_state_dict({own[name]: weights[name] for name in wanted}, strict=False)
    left_out = [(given_names[name], tensor) for name, tensor in weights.items() if name not in wanted]
    fresh = [(own[name], own_state[own[name]]) for name in own if own[name].partition(".")[0] in LAST_LAYERS]
    return [
        f"pretrained_weights={source}",
        f"  matched    {len(wanted)} tensors",
        *(f"  left out   {_describe(name, tensor)}" for name, tensor in left_out),
        *(f"  untrained  {_describe(name, tensor)}" for name, tensor in fresh),
    ]


def _describe(name: str, tensor: Tensor) -> str:
    shown = name.encode("unicode_escape").decode()
    return f"{shown} {'x'.join(map(str, tensor.shape)) or 'number'}"


def hash_pretrained(source: str | None) -> str | None:
    """Return the SHA-256 of a file of pretrained weights; None for none and for torchvision's, which has its own check.

    Raises:
        TrainingError: The file is not there.
    """
    if source is None or source == TORCHVISION:
        return None
    _check_is_file(Path(source))
    with Path(source).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_state(run_dir: Path, state: TrainingState) -> None:
    """Write state.pt."""
    buffer = io.BytesIO()
    torch.save(vars(state), buffer)
    write_atomically(run_dir / STATE_FILE, buffer.getvalue())


def load_state(run_dir: Path, config_sha256: str) -> TrainingState | None:
    """Return the state that an interrupted run left, or None if it left none.

    Raises:
        TrainingError: The file is damaged or belongs to another config.
    """
    file = run_dir / STATE_FILE
    state = _read_state(file)
    if state is not None and state.config_sha256 != config_sha256:
        raise TrainingError(f"{file} belongs to a run with other settings; start a new run instead of resuming it")
    return state


def is_of_another_version(run_dir: Path, config_sha256: str) -> bool:
    """Return True if a version with other settings wrote the state of a run whose settings read the same today."""
    try:
        state = _read_state(run_dir / STATE_FILE)
    except TrainingError:
        return False
    return state is not None and state.config_sha256 != config_sha256


def _read_state(file: Path) -> TrainingState | None:
    if not file.exists():
        return None
    try:
        return TrainingState(**torch.load(file, map_location="cpu", weights_only=True))
    except _UNREADABLE as error:
        raise TrainingError(f"{file} is damaged ({first_line(error)}); remove its folder to start anew") from error


def _read_state_dict(file: Path) -> dict[str, Tensor]:
    _check_is_file(file)
    try:
        if file.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(file))
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise TrainingError(f"pretrained_weights={file} is not a weights file: {first_line(error)}") from error
    while isinstance(weights, dict) and (inner := [weights[key] for key in _WRAPPERS if _is_dict(weights, key)]):
        weights = inner[0]
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise TrainingError(f"pretrained_weights={file} holds no state dict of tensors")
    if all(name.startswith(_PARALLEL_PREFIX) for name in weights):
        weights = {name.removeprefix(_PARALLEL_PREFIX): tensor for name, tensor in weights.items()}
    if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise TrainingError(f"pretrained_weights={file}: {broken[0]} has values that are NaN or infinite")
    return weights


def _is_dict(weights: Mapping[str, object], key: str) -> bool:
    return isinstance(weights.get(key), dict)


def _check_is_file(file: Path) -> None:
    if not file.is_file():
        raise TrainingError(f"pretrained_weights={file}: no such file; give a .safetensors or .pth file")


def find_torchvision_download() -> Path:
    """Return the place of torchvision's ImageNet weights, downloaded or not."""
    from torchvision.models import ResNet18_Weights

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(ResNet18_Weights.IMAGENET1K_V1.url).name


def download_torchvision() -> dict[str, Tensor]:
    """Return torchvision's ImageNet weights of ResNet-18, which are downloaded once.

    Raises:
        DownloadError: They cannot be downloaded.
    """
    from torchvision.models import ResNet18_Weights

    try:
        return dict(ResNet18_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise DownloadError(
            f"torchvision's ImageNet weights could not be downloaded ({first_line(error)}); "
            "give a file with --set pretrained_weights=PATH"
        ) from error
