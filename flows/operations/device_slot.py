"""One training at a time on one device.

On one machine a lock that the kernel frees when its holder dies, however it dies. On a Prefect server that has a limit
for the device also a slot of it, seen in its pages and shared by machines: held by a lease that is renewed while the
training lives, so that the slot of a dead one is free after `LEASE_S`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from prefect.client.orchestration import get_client
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from flows.experiments.device_lock import lock_device, waiting_for
from model_code.errors import BusyError

LEASE_S = 120.0


def name_slot(device: str) -> str:
    """Return the name of a device's limit on a Prefect server."""
    return f"darkroom-{device}"


@contextmanager
def hold_device(locks_dir: Path, device: str) -> Iterator[None]:
    """Wait until no other Darkroom process trains on `device`, then hold it while the block runs."""
    slot = name_slot(device)
    with ExitStack() as held:
        if _is_limited(slot):
            held.enter_context(waiting_for(lambda: _take_slot(slot)))
        held.enter_context(lock_device(locks_dir, device))
        yield


def _is_limited(slot: str) -> bool:
    try:
        with get_client(sync_client=True) as client:
            client.read_global_concurrency_limit_by_name(slot)
    except ObjectNotFound:
        return False
    return True


@contextmanager
def _take_slot(slot: str) -> Iterator[None]:
    """Hold a slot of the server, or refuse at once: Prefect itself would wait for up to half a minute between tries.

    Raises:
        BusyError: Others hold it.
    """
    try:
        # A server that does not answer for a while must not end a training: the lock still keeps others away.
        with concurrency(
            slot, max_retries=0, lease_duration=LEASE_S, strict=True, raise_on_lease_renewal_failure=False
        ):
            yield
    except ConcurrencySlotAcquisitionError as error:
        if (
            isinstance(error.__cause__, httpx.HTTPStatusError)
            and error.__cause__.response.status_code == httpx.codes.LOCKED
        ):
            raise BusyError(f"another run holds {slot}; waiting for it") from error
        raise
