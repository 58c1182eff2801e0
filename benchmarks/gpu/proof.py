"""A stage of the proof: entries that are measured once, written at once, and skipped when the stage is repeated."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from model_code.disk import write_atomically
from model_code.errors import DarkroomError
from model_code.tracking.provenance import find_versions, read_git_sha
from model_code.training.device import choose_device, describe_device

LIBRARIES = ("torch", "torchvision", "numpy", "onnxruntime", "onnxruntime-gpu", "pydantic")
NO_CUDA = "no CUDA device"
Figures = dict[str, Any]


class NoDeviceError(Exception):
    """An entry needs a device that this machine does not have."""


@dataclass
class Stage:
    """One stage, its budget and its file.

    Attributes:
        name: Name of the stage.
        folder: Folder of the JSON files and the runs.
        is_dry: True if budgets are tiny: the figures then mean nothing.
        limit_s: No entry is begun after so many seconds.
        cache_dir: Packed data sets.
        pretrained: File of torchvision's ImageNet weights of ResNet-18; None where there is none.
        entries: Figures by entry; `not_measured` and why where there are none.
        left: Entries that a repetition measures.
        failed: Entries that ended with an error, and which; a repetition measures them as well.
    """

    name: str
    folder: Path
    is_dry: bool
    limit_s: float
    cache_dir: Path
    pretrained: Path | None = None
    device: torch.device = field(default_factory=lambda: choose_device("auto"))
    entries: dict[str, Figures] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    start_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.file.exists():
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            if kept["machine"] == describe_machine(self.device) and kept["is_dry"] == self.is_dry:
                self.entries = {
                    name: figures for name, figures in kept["entries"].items() if "not_measured" not in figures
                }

    @property
    def file(self) -> Path:
        """The figures so far."""
        return self.folder / f"{self.name}.json"

    @property
    def seconds_left(self) -> float:
        """What is left of the budget."""
        return self.start_s + self.limit_s - time.monotonic()

    @property
    def is_cuda(self) -> bool:
        """Whether there is a CUDA device."""
        return self.device.type == "cuda"

    def need_cuda(self) -> None:
        """Refuse an entry without a CUDA device.

        Raises:
            NoDeviceError: There is none.
        """
        if not self.is_cuda:
            raise NoDeviceError(NO_CUDA)

    def measure(self, entry: str, work: Callable[[], Figures | None]) -> None:
        """Measure one entry, unless that was done before or the time is over; write the file.

        Args:
            entry: Name of the entry.
            work: Returns its figures; None where it was stopped in time and a repetition goes on.
        """
        if entry in self.entries:
            return
        if self.seconds_left <= 0:
            self.left.append(entry)
            return
        start_s = time.monotonic()
        try:
            figures = work()
        except NoDeviceError as error:
            figures = {"not_measured": str(error)}
        except Exception as error:  # noqa: BLE001 - one that fails does not stop the others
            figures = {"not_measured": _describe_error(error)}
            self.failed.append(f"{entry} ({figures['not_measured']})")
        if figures is None:
            self.left.append(entry)
            return
        self.entries[entry] = figures | {"entry_s": round(time.monotonic() - start_s, 2)}
        self.write()
        print(f"{self.name}  {entry}: {describe(figures)}", flush=True)

    def name_unmeasured(self, entry: str, reason: str) -> None:
        """Have the page say that nobody measures an entry, which is no failure."""
        self.entries[entry] = {"not_measured": reason}

    def write(self) -> None:
        """Write the figures so far."""
        record = {
            "stage": self.name,
            "is_dry": self.is_dry,
            "machine": describe_machine(self.device),
            "entries": self.entries,
        }
        write_atomically(self.file, (json.dumps(record, indent=2) + "\n").encode())


def _describe_error(error: Exception) -> str:
    line = str(error).partition("\n")[0]
    return line if isinstance(error, DarkroomError) else f"{type(error).__name__}: {line}"


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return hardware, versions and commit of the figures."""
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return {
        "device": describe_device(device),
        "device_memory_bytes": memory,
        "cpu_count": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "versions": find_versions(LIBRARIES),
        "git_sha": read_git_sha(),
    }


def describe(figures: Mapping[str, Any]) -> str:
    """Return an entry's figures in a line."""
    if "not_measured" in figures:
        return f"not measured: {figures['not_measured']}"
    return ", ".join(f"{name} {format_figure(value)}" for name, value in figures.items() if name != "entry_s")


def format_figure(value: object) -> str:
    """Return a figure for people."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "not measured" if value is None else str(value)
