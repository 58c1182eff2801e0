"""Processors that this process may use."""

import os
from pathlib import Path


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
