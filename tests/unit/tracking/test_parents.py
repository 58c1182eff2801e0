import json
from urllib.parse import parse_qsl

import pytest
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from model_code.errors import ReleaseError
from model_code.report.collection import collect_runs
from model_code.tracking.finished_runs import find_finished_runs, get_finished_run
from model_code.tracking.mlflow_log import MlflowTracking
from model_code.tracking.parents import GROUP_TAG, open_study
from model_code.tracking.store import EXPERIMENT, find_comparison
from model_code.training.run_folder import RunRecord, create_run_folder
from tests.unit.tracking.small_store import open_small_store
from tests.unit.training.small_runs import make_config


@pytest.fixture
def small(tmp_path):
    with open_small_store(tmp_path) as store:
        yield store


def train(settings, config, parent=None):
    """Track a run that takes no step; its id comes back."""
    tracking = MlflowTracking(settings, parent)
    run_id = tracking.create_run(config, "a" * 32)
    record = RunRecord(run_id=run_id, data_checksum="c" * 64, config=config)
    with tracking.track(create_run_folder(settings.checkpoints_dir, record), {}):
        pass
    return run_id


def list_parents(client):
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return client.search_runs([experiment.experiment_id], f"tags.{GROUP_TAG} LIKE '%'")


def get_parent(client, run_id):
    return client.get_run(run_id).data.tags.get(MLFLOW_PARENT_RUN_ID)


def test_a_study_holds_its_runs_and_the_seeds_of_one_recipe(small):
    settings, client = small
    configs = [make_config(seed=0), make_config(seed=1), make_config(batch_size=7)]
    with open_study(settings, configs) as study:
        runs = [train(settings, config, study.open_parent(config)) for config in configs]
    (seeds, other_seed, alone) = (client.get_run(get_parent(client, run_id)) for run_id in runs)
    assert seeds.info.run_id == other_seed.info.run_id != alone.info.run_id
    assert seeds.data.tags[MLFLOW_PARENT_RUN_ID] == alone.info.run_id
    assert MLFLOW_PARENT_RUN_ID not in alone.data.tags
    assert [parent.info.run_name for parent in (alone, seeds)] == [
        "train-all, full: 3 runs",
        "tiny_pets_test on shapes, full: 2 seeds",
    ]
    assert [parent.info.status for parent in list_parents(client)] == ["FINISHED"] * 2


def test_no_lookup_takes_a_parent_for_a_training(small):
    settings, client = small
    configs = [make_config(seed=seed) for seed in range(2)]
    with open_study(settings, configs) as study:
        runs = [train(settings, config, study.open_parent(config)) for config in configs]
    assert len(list_parents(client)) == 2
    assert {run.run_id for run in collect_runs(client).runs} == set(runs)
    assert find_finished_runs(client, configs[0].recipe, "*") == []  # they have no validation accuracy
    for parent in list_parents(client):
        with pytest.raises(ReleaseError, match="not a finished training"):
            get_finished_run(client, parent.info.run_id)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    comparison = find_comparison(client, experiment.experiment_id)
    assert f"(#/{comparison})" in client.get_experiment(experiment.experiment_id).tags["mlflow.note.content"]
    _, _, query = comparison.partition("?")
    assert set(json.loads(dict(parse_qsl(query))["runs"])) == set(runs)


def test_an_interrupted_study_is_taken_up_and_a_finished_one_is_not(small):
    settings, client = small
    config, ids = make_config(), []

    def interrupt():
        with open_study(settings, [config]) as study:
            ids.append(study.open_parent(config))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert client.get_run(ids[0]).info.status == "KILLED"
    with open_study(settings, [config]) as study:
        ids.append(study.open_parent(config))
        assert client.get_run(ids[0]).info.status == "RUNNING"
        study.fail(config)
    assert client.get_run(ids[0]).info.status == "FAILED"
    for _ in range(2):
        with open_study(settings, [config]) as study:
            ids.append(study.open_parent(config))
    assert ids[0] == ids[1] == ids[2] != ids[3]


def test_only_the_group_of_a_failed_run_fails(small):
    settings, client = small
    configs = [make_config(seed=seed, batch_size=size) for size in (6, 7) for seed in range(2)]
    with open_study(settings, configs) as study:
        parents = {config.batch_size: study.open_parent(config) for config in configs}
        study.fail(configs[0])
    assert [client.get_run(parents[size]).info.status for size in (6, 7)] == ["FAILED", "FINISHED"]


def test_kept_runs_are_nested_where_something_was_trained(small):
    settings, client = small
    kept, new = make_config(seed=0), make_config(seed=1)
    own = train(settings, kept)
    with open_study(settings, [kept, new]) as study:
        study.adopt(kept, own)
    assert list_parents(client) == []
    with open_study(settings, [kept, new]) as study:
        parent = study.open_parent(new)
        study.adopt(kept, own)
    assert get_parent(client, own) == parent
    with open_study(settings, [kept]) as study:
        study.open_parent(kept)
        study.adopt(kept, own)
    assert get_parent(client, own) == parent


def test_while_mlflow_does_not_answer_runs_have_no_parent(small):
    settings, client = small
    known, new = make_config(), make_config(batch_size=7)
    own = train(settings, new)
    with open_study(settings, [known, make_config(seed=1), new]) as study:
        parent = study.open_parent(known)
        study._client = MlflowClient("http://127.0.0.1:9")
        assert study.open_parent(make_config(batch_size=7, seed=2)) is not None, "the study itself is known"
        assert study.open_parent(known) == parent
        study._parents.clear()
        assert study.open_parent(new) is None
        study.adopt(new, own)
    assert get_parent(client, own) is None
