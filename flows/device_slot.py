"""One training at a time on one device.

On one machine a lock that the kernel frees when its holder dies, however it dies. On a Prefect server that has a limit
for the device also a slot of it, seen in its pages and shared by machines: held by a lease that is renewed while the
training lives, so that the slot of a dead one is free after `LEASE_S`.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from model_code.disk import take_lock
from model_code.errors import BusyError

SECONDS_BETWEEN_TRIES = 1.0
SECONDS_BETWEEN_LINES = 60.0
LEASE_S = 120.0


def name_slot(device: str) -> str:
    """Return the name of a device's limit on a Prefect server."""
    return f"darkroom-{device}"


@contextmanager
def hold_device(locks_dir: Path, device: str) -> Iterator[None]:
    """Wait until no other Darkroom process trains on `device`, then hold it while the block runs."""
    with _hold_slot(device), _hold_lock(locks_dir, device):
        yield


@contextmanager
def _hold_slot(device: str) -> Iterator[None]:
    slot = name_slot(device)
    try:
        with get_client(sync_client=True) as client:
            limit = client.read_global_concurrency_limit_by_name(slot)
    except ObjectNotFound:
        yield
        return
    if limit.active_slots >= limit.limit:
        print(f"another run holds {slot}; waiting for it", flush=True)
    # A server that does not answer for a while must not end a training: the lock still keeps others away.
    with concurrency(slot, lease_duration=LEASE_S, strict=True, raise_on_lease_renewal_failure=False):
        yield


@contextmanager
def _hold_lock(locks_dir: Path, device: str) -> Iterator[None]:
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
