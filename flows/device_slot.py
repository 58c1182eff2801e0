"""One training at a time on one device: a lock that the kernel frees when its holder dies, however it dies."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from model_code.disk import take_lock
from model_code.errors import BusyError

SECONDS_BETWEEN_TRIES = 1.0
SECONDS_BETWEEN_LINES = 60.0


@contextmanager
def hold_device(locks_dir: Path, device: str) -> Iterator[None]:
    """Wait until no other Darkroom process trains on `device`, then hold it while the block runs."""
    lock = locks_dir / f"device-{device}.lock"
    next_line_s = time.monotonic()
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(take_lock(lock, f"another training uses {device}; waiting for it"))
                break
            except BusyError as busy:
                if time.monotonic() >= next_line_s:
                    print(busy, flush=True)
                    next_line_s = time.monotonic() + SECONDS_BETWEEN_LINES
                time.sleep(SECONDS_BETWEEN_TRIES)
        yield
