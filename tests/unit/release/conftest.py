import pytest

from model_code.release.gate import judge
from model_code.release.gate_rules import GateRules
from model_code.tracking.provenance import read_versions
from model_code.tracking.store import EXPERIMENT
from serving.bundle.store import read_bundle
from tests.unit.serving.tiny_bundle import make_two_variants
from tests.unit.tracking.small_store import open_small_store
from tests.unit.training.small_runs import tiny_network_entered


@pytest.fixture(scope="module", autouse=True)
def tiny_network():
    with tiny_network_entered():
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """(settings, client) of an SQLite store."""
    with open_small_store(tmp_path_factory.mktemp("home")) as store:
        yield store


@pytest.fixture(scope="module")
def client(store):
    return store[1]


@pytest.fixture(scope="module")
def bundles_dir(store):
    return store[0].bundles_dir


@pytest.fixture(scope="module")
def make_bundle(store):
    """Write a bundle with two variants, of a run that MLflow knows; (folder, manifest) come back."""
    settings, client = store
    experiment = client.get_experiment_by_name(EXPERIMENT)

    def make(name, run_id=None, **fields):
        run_id = run_id or client.create_run(experiment.experiment_id).info.run_id
        changes = {"name": name, "run_id": run_id, "versions": read_versions(), **fields}
        folder = make_two_variants(settings.bundles_dir, manifest=changes)
        return folder, read_bundle(folder)

    return make


def make_verdict():
    """The verdict on three images without a champion, two of them right."""
    import numpy as np

    return judge(
        labels_N=np.array([0, 1, 2]),
        challenger_N=np.array([0, 1, 1]),
        champion_N=None,
        classes=("a", "b", "c"),
        split="test",
        champion_version=None,
        rules=GateRules(),
    )
