"""A service that follows the champions of a real MLflow server, on a machine that has nothing else."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from model_code.release.versions import register_version, set_challenger
from model_code.tracking.provenance import read_versions
from model_code.tracking.store import EXPERIMENT, open_store
from serving.bundle.store import (
    BUNDLE_TAG,
    CHAMPION,
    MODEL_FILE,
    SHARE_TAG,
    list_released,
    read_bundle,
    read_challenger,
)
from serving.models.registry import RegistryFollower
from tests.contract.conftest import start_service  # noqa: F401
from tests.contract.test_launcher import launch
from tests.contract.test_swaps import wait_for
from tests.integration.mlflow_server import Server
from tests.unit.serving.tiny_bundle import make_bundle, paint, release
from tests.unit.tracking.small_store import make_settings, mlflow_given_back

IMAGE = {"Content-Type": "image/png"}


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    server.run()
    yield server
    server.kill()


@pytest.fixture
def client(server, tmp_path):
    with mlflow_given_back():
        yield open_store(make_settings(tmp_path / "trainer", server.url))


@pytest.fixture
def register(client, tmp_path):
    """Register a bundle; its version comes back."""

    def register(softness, name="cifar10"):
        run = client.create_run(client.get_experiment_by_name(EXPERIMENT).experiment_id)
        fields = {"run_id": run.info.run_id, "versions": read_versions()}
        folder = make_bundle(tmp_path / "trainer" / "bundles", name, softness=softness, manifest=fields)
        return register_version(client, folder, read_bundle(folder))

    return register


def test_champions_are_fetched_verified_and_kept_without_the_registry(
    server,
    client,
    register,
    tmp_path,
    start_service,  # noqa: F811
):
    first, second = register(4000.0), register(9000.0)
    client.set_registered_model_alias("cifar10", CHAMPION, first)
    home = tmp_path / "serving"
    service = start_service(home, "--registry", server.url)

    def read_models():
        return httpx.get(f"{service.url}/v1/models", trust_env=False).json()

    def ask():
        return httpx.post(f"{service.url}/v1/predict", content=paint(), headers=IMAGE, trust_env=False).json()

    assert ask()["model"]["version"] == first
    client.set_registered_model_alias("cifar10", CHAMPION, second)
    wait_for(lambda: ask()["model"]["version"] == second)

    set_challenger(client, "cifar10", first)
    wait_for(lambda: (read_models()["models"][0]["challenger"] or {}).get("version") == first)
    client.set_model_version_tag("cifar10", first, SHARE_TAG, "1")
    wait_for(lambda: ask()["model"]["version"] == first)
    assert read_challenger(home / "bundles", "cifar10").since
    client.set_model_version_tag("cifar10", first, SHARE_TAG, "1.5")
    wait_for(lambda: "a share is from 0 to 1" in str(read_models()["problems"]))
    set_challenger(client, "cifar10", None)
    wait_for(lambda: read_models()["models"][0]["challenger"] is None)
    assert ask()["model"]["version"] == second

    server.kill()
    wait_for(lambda: [problem["name"] for problem in read_models()["problems"]] == ["registry"])
    assert ask()["model"]["version"] == second
    assert "darkroom_registry_answers 0.0" in httpx.get(f"{service.url}/metrics", trust_env=False).text
    service.stop()
    again = start_service(home, "--registry", server.url)
    assert httpx.get(f"{again.url}/v1/models", trust_env=False).json()["models"][0]["version"] == second


def test_what_is_damaged_in_the_registry_is_refused_by_name(server, client, register, tmp_path):
    version = register(4000.0)
    client.set_registered_model_alias("cifar10", CHAMPION, version)
    stored = next((tmp_path / "artifacts").rglob(MODEL_FILE))
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    other = register(4000.0, "foreign")
    client.set_registered_model_alias("foreign", CHAMPION, other)
    client.delete_model_version_tag("foreign", other, BUNDLE_TAG)
    follower = RegistryFollower(server.url, tmp_path / "serving" / "bundles", interval_s=0)
    fetched, download = [], follower._download
    follower._download = lambda *given: (fetched.append(given), download(*given))
    follower.sync()
    told = dict(follower.failures)
    follower.sync()
    assert follower.failures == told
    assert len(fetched) == 1, "not again at once"
    assert follower.problem == ""
    assert set(follower.failures) == {"cifar10", "foreign"}
    assert "was changed after its release" in follower.failures["cifar10"]
    assert "was not registered by Darkroom" in follower.failures["foreign"]
    assert list_released(tmp_path / "serving" / "bundles") == []
    assert [file.name for file in (tmp_path / "serving").iterdir()] == ["bundles"], "nothing half fetched stays"


def test_an_address_that_is_no_registry_is_one_line(tmp_path):
    follower = RegistryFollower("http://127.0.0.1:9", tmp_path / "bundles")
    follower.sync()
    assert follower.problem.startswith("the registry http://127.0.0.1:9 does not answer: ")


def test_what_is_no_mlflow_is_one_problem(tmp_path):
    class Nonsense(BaseHTTPRequestHandler):
        def do_GET(self):
            content = b'{"registered_models": {"x": 1}}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Nonsense) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        follower = RegistryFollower(f"http://127.0.0.1:{other.server_port}", tmp_path / "bundles")
        follower.sync()
        other.shutdown()
        thread.join()
    assert "answers what MLflow does not" in follower.problem


def test_a_home_with_releases_of_its_own_follows_no_registry(tmp_path):
    release(tmp_path / "bundles")
    (tmp_path / "bundles" / "cifar10" / "ledger.jsonl").touch()
    outcome = launch(tmp_path, "--registry", "http://127.0.0.1:9")
    assert outcome.returncode == 1
    assert "has releases of its own, which a registry's would replace" in outcome.stderr
