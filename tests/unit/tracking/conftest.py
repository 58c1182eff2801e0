import pytest

from tests.unit.tracking.small_store import open_small_store
from tests.unit.training.small_runs import tiny_network_entered


@pytest.fixture(scope="module", autouse=True)
def tiny_network():
    with tiny_network_entered():
        yield


@pytest.fixture(scope="package")
def store(tmp_path_factory):
    """(settings, client) of an SQLite store that the tests of this folder share: making one takes seconds."""
    with open_small_store(tmp_path_factory.mktemp("home")) as store:
        yield store
