from model_code.tracking.mlflow_log import create_run
from model_code.tracking.store import EXPERIMENT
from tests.unit.tracking.small_store import open_small_store
from tests.unit.training.small_runs import make_config, tiny_network_entered


def test_a_run_without_a_folder_is_taken_up_by_its_next_attempt(tmp_path):
    folders = tmp_path / "checkpoints"
    with tiny_network_entered(), open_small_store(tmp_path) as (_, client):
        first = create_run(client, EXPERIMENT, make_config(), "a" * 32, folders)
        assert create_run(client, EXPERIMENT, make_config(), "a" * 32, folders) == first
        assert create_run(client, EXPERIMENT, make_config(), "b" * 32, folders) != first
        (folders / first).mkdir(parents=True)
        again = create_run(client, EXPERIMENT, make_config(), "a" * 32, folders)
        assert again != first
        assert client.get_run(again).info.run_name == f"{again[:8]} tiny_pets_test on shapes, full, seed 0"
