from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module", autouse=True)
def _empty_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Integration tests in the same process leave a home with recipes and data sets in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DARKROOM_HOME", str(tmp_path_factory.mktemp("empty-home")))
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tensors so small that a second thread is only waited for."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_disk(mount_disk: Callable[[str], Path]) -> Path:
    """A real disk of 1 MiB."""
    return mount_disk("1m")
