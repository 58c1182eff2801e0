"""One training at a time on one device of a machine: a lock that the kernel frees when its holder dies."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from model_code.disk import take_lock
from model_code.errors import BusyError
from model_code.training.device import name_lock

SECONDS_BETWEEN_TRIES = 2.0
SECONDS_BETWEEN_LINES = 60.0


@contextmanager
def lock_device(locks_dir: Path, device: str) -> Iterator[None]:
    """Wait until no other Darkroom process of this machine trains on `device`, then hold it while the block runs."""
    lock = locks_dir / name_lock(device)
    with waiting_for(lambda: take_lock(lock, f"another training uses {device}; waiting for it")):
        yield


@contextmanager
def waiting_for(take: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Try until it is not busy, then hold it while the block runs; a line says now and then what is waited for."""
    next_line_s = time.monotonic()
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(take())
                break
            except BusyError as busy:
                if time.monotonic() >= next_line_s:
                    print(busy, flush=True)
                    next_line_s = time.monotonic() + SECONDS_BETWEEN_LINES
                time.sleep(SECONDS_BETWEEN_TRIES)
        yield
