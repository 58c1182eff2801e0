import pytest

from tests.unit.report.synthetic_runs import Store
from tests.unit.tracking.small_store import open_small_store


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """(settings, client) of an empty store for one file of tests."""
    with open_small_store(tmp_path_factory.mktemp("home")) as opened:
        yield opened


@pytest.fixture(scope="module")
def store(opened):
    return Store(opened[1])
