"""DARKROOM_STORAGE on a server of S3: machines are homes, and nodes of a Ray cluster with homes of their own."""

import os
import re
import shutil
import signal
import time
from importlib.util import find_spec

import pytest

from model_code.errors import StorageError
from model_code.storage import Storage
from tests.integration.conftest import read_until, read_weights
from tests.integration.s3_server import BUCKET, S3Server
from tests.integration.test_ray import BEGUN, NODE, RECIPES, finish, kills, wait_until_none_trains
from tests.unit.test_storage import (  # noqa: F401 - the same on S3
    test_a_file_comes_back_and_a_missing_one_is_none,
    test_a_stored_file_that_is_changed_or_gone_is_named,
    test_files_come_back_as_they_were_and_progress_counts_their_bytes,
    test_folders_are_listed_and_removed,
)

pytestmark = pytest.mark.slow

# Of `packed_tiny`: a training takes long enough for states to be stored.
COUNT, EPOCHS = 3, 40 if "DARKROOM_RAY_RUNS" in os.environ else 16
ADDRESS = f"s3://{BUCKET}/team/darkroom"


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    server = S3Server(tmp_path_factory.mktemp("s3") / "log")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        try:
            yield server
        finally:
            server.kill()


@pytest.fixture
def storage(s3):
    """An empty storage."""
    s3.kill()  # it keeps everything in memory
    s3.run()
    return Storage(ADDRESS)


def wait_for_state(storage, recipe):
    """Wait until a state of a training is stored."""
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        for run in storage.list_folders(f"runs/{recipe}"):
            for owner in storage.list_folders(f"runs/{recipe}/{run}"):
                if b'"state.pt"' in (storage.read(f"runs/{recipe}/{run}/{owner}/manifest.json") or b""):
                    return
        time.sleep(0.05)
    raise AssertionError(f"no state of {recipe} was stored")


def test_a_storage_that_does_not_answer_and_a_bucket_that_is_not_there_are_named(s3, storage):
    with pytest.raises(StorageError, match=r"s3://other/folder: writing check-.*bucket does not exist"):
        Storage("s3://other/folder").check()
    s3.kill()
    with pytest.raises(StorageError, match=rf"{ADDRESS}: writing check-.*Could not connect"):
        storage.check()


def test_another_machine_resumes_a_killed_training_to_the_same_weights(
    storage, tiny_home, tiny_weights, tmp_path, start_darkroom
):
    other_home = tmp_path / "other"
    shutil.copytree(tiny_home / "recipes", other_home / "recipes")
    train = ("train", "tiny_0", "--offline")
    first = start_darkroom(*train, DARKROOM_HOME=str(tiny_home), DARKROOM_STORAGE=ADDRESS)
    wait_for_state(storage, "tiny_0")
    first.kill()
    out = finish(start_darkroom(*train, DARKROOM_HOME=str(other_home), DARKROOM_STORAGE=ADDRESS))
    assert re.search(r"fetching shapes from s3://", out), out
    assert re.search(r"goes on (after epoch|in epoch) \d", out), out
    assert read_weights(other_home) == tiny_weights[:1]
    # The first machine keeps what the other one finished, and tiny_1 starts from it.
    study = ("train-all", "--only", "tiny_[01]", "--offline")
    out = finish(start_darkroom(*study, DARKROOM_HOME=str(tiny_home), DARKROOM_STORAGE=ADDRESS))
    assert re.search(r"tiny_0  kept from run", out), out
    assert read_weights(tiny_home) == tiny_weights[:2]
    # A third one has nothing but the recipes, and the other one's end of tiny_0.
    third = tmp_path / "third"
    shutil.copytree(tiny_home / "recipes", third / "recipes")
    finish(start_darkroom("train", "tiny_1", "--offline", DARKROOM_HOME=str(third), DARKROOM_STORAGE=ADDRESS))
    assert read_weights(third) == tiny_weights[:2]


def test_a_removed_run_is_removed_for_all_machines(storage, tiny_home, start_darkroom):
    environment = {"DARKROOM_HOME": str(tiny_home), "DARKROOM_STORAGE": ADDRESS}
    finish(start_darkroom("train", "tiny_0", "--offline", **environment))
    [run] = storage.list_folders("runs/tiny_0")
    finish(start_darkroom("runs", "remove", run.rpartition("-")[2], **environment))
    assert storage.list_folders("runs/tiny_0") == []


@pytest.fixture
def two_homes(storage, tmp_path):
    """A Ray cluster of two nodes, each with an empty home of its own."""
    if find_spec("ray") is None:
        pytest.skip("Ray, the extra [ray], is not installed")
    before = signal.getsignal(signal.SIGTERM)
    homes = [tmp_path / "node-1", tmp_path / "node-2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray import cluster_utils  # here: it changes this process

        nodes = [NODE | {"env_vars": {"DARKROOM_HOME": str(home)}} for home in homes]
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=nodes[0] | {"include_dashboard": False})
        try:
            cluster.add_node(**nodes[1])
            yield cluster, homes
        finally:
            cluster.shutdown()
            signal.signal(signal.SIGTERM, before)


def start_study(start_darkroom, home, cluster):
    return start_darkroom(
        *("train-all", "--only", "tiny_*", "--offline", "--runner", "ray", "--at-once", 2),
        *("--address", cluster.address),
        DARKROOM_HOME=str(home),
        DARKROOM_STORAGE=ADDRESS,
    )


def test_nodes_with_homes_of_their_own_train_a_study(two_homes, tiny_home, tiny_weights, start_darkroom):
    cluster, homes = two_homes
    finish(start_study(start_darkroom, tiny_home, cluster))
    assert read_weights(tiny_home) == tiny_weights
    trained = [read_weights(home) for home in homes]
    assert all(trained)
    assert sorted({run for runs in trained for run in runs}) == tiny_weights


@kills
def test_a_run_of_a_node_that_is_killed_goes_on_in_the_home_of_another(
    two_homes, storage, tiny_home, tiny_weights, start_darkroom
):
    cluster, homes = two_homes
    process = start_study(start_darkroom, tiny_home, cluster)
    lines = read_until(process, *BEGUN)
    wait_for_state(storage, "tiny_0")
    wait_for_state(storage, "tiny_2")
    [node] = cluster.worker_nodes
    cluster.remove_node(node, allow_graceful=False)
    out = "".join(lines) + finish(process)
    wait_until_none_trains(homes[1])
    assert [name for name in RECIPES if re.search(rf"{name} seed 0 \| +goes on", out)], out
    assert read_weights(tiny_home) == tiny_weights
    assert read_weights(homes[0]) == tiny_weights
