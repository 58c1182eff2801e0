"""Processors and memory that this process may use."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_MEMORY_FILES = tuple(map(Path, ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")))


def count_cpus(cgroup_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many CPUs this process may use: its affinity, and its container's quota if that is lower."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = cgroup_file.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cpus
    if quota == "max":
        return cpus
    return max(1, min(cpus, round(int(quota) / int(period))))


def count_memory_bytes(cgroup_files: Sequence[Path] = _MEMORY_FILES) -> int:
    """Return the machine's memory, or its container's limit (cgroup v2 or v1) if that is lower."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in cgroup_files:
        with suppress(OSError, ValueError):  # `max` without a limit
            limits.append(int(file.read_text(encoding="ascii")))
    return min(limits)
