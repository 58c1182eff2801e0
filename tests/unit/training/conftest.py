import pytest

from tests.unit.training.small_runs import tiny_network_entered


@pytest.fixture(scope="module", autouse=True)
def tiny_network():
    with tiny_network_entered():
        yield
