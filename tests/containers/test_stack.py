"""What a team does with the stack, in the order of its days: train, release, lose containers, back up, restore."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import httpx
import pytest
from PIL import Image

from tests.containers.conftest import docker

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1500)]

RECIPE = "resnet18_cifar10_exp"
SERVICES = {"postgres", "mlflow", "prefect", "worker", "clerk", "healer", "serving", "prometheus"}
SMOKE = {"recipe": RECIPE, "profile": "smoke", "settings": ["dataset=shapes"]}


@pytest.fixture
def client(stack, monkeypatch):
    """Of Prefect's published API."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    changes = {PREFECT_API_URL: f"{stack.url('PREFECT')}/api", PREFECT_API_AUTH_STRING: stack.settings["PREFECT_AUTH"]}
    with temporary_settings(changes), get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def mlflow_client(stack, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", stack.settings["MLFLOW_ADMIN_USERNAME"])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", stack.settings["MLFLOW_ADMIN_PASSWORD"])
    return MlflowClient(stack.url("MLFLOW"))


def start(client, deployment, **parameters):
    return client.create_flow_run_from_deployment(client.read_deployment_by_name(deployment).id, parameters=parameters)


def patiently(ask):
    """What a server answers, also when it is just coming back."""
    try:
        return ask()
    except (httpx.HTTPError, OSError):
        return None


def wait_for(condition, seconds, what):
    start_s = time.monotonic()
    while not (found := patiently(condition)):
        assert time.monotonic() - start_s < seconds, f"{what} does not come within {seconds} s"
        time.sleep(1)
    return found


def finish(client, run, seconds=300):
    """Wait for the end of a run, which must be a good one."""

    def read_end():
        state = client.read_flow_run(run.id).state
        return state if state.is_final() else None

    state = wait_for(read_end, seconds, "the end of the run")
    assert state.name == "Completed", state.message


def run(client, deployment, **parameters):
    finish(client, start(client, deployment, **parameters))


def read_served(stack):
    return {
        model["name"]: model["version"] for model in httpx.get(f"{stack.url('SERVING')}/v1/models").json()["models"]
    }


def predict(stack):
    image = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(image, "PNG")
    answer = httpx.post(
        f"{stack.url('SERVING')}/v1/predict", content=image.getvalue(), headers={"Content-Type": "image/png"}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def list_runs(client):
    # A study above its trainings is a run too, of no kind.
    return client.search_runs([client.get_experiment_by_name("darkroom").experiment_id], "tags.kind LIKE '%'")


def check_epochs(client, run_id, epochs):
    for key in ("train/loss", "validation/accuracy", "train/learning_rate"):
        steps = Counter(metric.step for metric in client.get_metric_history(run_id, key))
        assert {step: count for step, count in steps.items() if step} == dict.fromkeys(range(1, epochs + 1), 1), key


def test_a_smoke_training_is_released_and_answers(stack, client, mlflow_client):
    assert httpx.get(f"{stack.url('SERVING')}/readyz").status_code == 503
    run(client, "add-data/process", name="shapes")
    run(client, "train-recipe/process", **SMOKE)
    (trained,) = list_runs(mlflow_client)
    assert trained.info.status == "FINISHED"
    assert {"figures", "checkpoints", "config.json"} <= {
        file.path for file in mlflow_client.list_artifacts(trained.info.run_id)
    }
    assert "test/accuracy" in trained.data.metrics
    run(client, "release-model/process", source=RECIPE, name="shapes")
    wait_for(lambda: read_served(stack) == {"shapes": "1"}, 15, "the released model")
    assert predict(stack)["model"]["name"] == "shapes"
    run(client, "check-health/hourly")


def test_nothing_is_open_and_nobody_is_root(stack):
    found = stack.containers()
    assert set(found) == SERVICES
    for name, container in found.items():
        (inspected,) = json.loads(docker("inspect", container))
        host = inspected["HostConfig"]
        assert host["ReadonlyRootfs"], name
        assert "ALL" in host["CapDrop"], name
        bound = [binding["HostIp"] for bindings in (host["PortBindings"] or {}).values() for binding in bindings]
        assert set(bound) <= {"127.0.0.1"}, name
        running = [line.split()[1:] for line in docker("top", container, "-eo", "pid,uid,comm").splitlines()[1:]]
        # Docker's own first process hands signals on.
        users = {user for user, command in running if command not in ("docker-init", "tini")}
        assert "0" not in users, name
    assert httpx.get(f"{stack.url('MLFLOW')}/api/2.0/mlflow/experiments/search").status_code == 401
    assert httpx.post(f"{stack.url('PREFECT')}/api/flow_runs/filter", json={}).status_code == 401
    assert (stack.folder / "infra/.env").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("image", ["darkroom-train", "darkroom-serve-cpu"])
def test_an_image_says_what_it_is_and_holds_no_secret(stack, image):
    (inspected,) = json.loads(docker("image", "inspect", f"{image}:test"))
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=stack.folder, check=True, capture_output=True, text=True)
    assert inspected["Config"]["Labels"]["org.opencontainers.image.revision"] == head.stdout.strip()
    assert inspected["Config"]["User"] == "1000:1000"
    assert inspected["Config"]["Healthcheck"]["Test"][0] == "CMD"
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", f"{image}:test")
    assert not any(value in history + str(inspected) for value in stack.settings.values() if len(value) > 20)
    found = docker(
        "run", "--rm", "--entrypoint", "sh", f"{image}:test", "-c", "command -v gcc cc nvcc; ls /opt/darkroom; true"
    )
    assert "gcc" not in found
    assert ".env" not in found


def test_prometheus_sees_everything(stack):
    def ask(query):
        answer = httpx.get(f"{stack.url('PROMETHEUS')}/api/v1/query", params={"query": query}).json()
        return {tuple(sorted(one["metric"].items())): float(one["value"][1]) for one in answer["data"]["result"]}

    def ask_by(query, label):
        return {dict(labels)[label]: value for labels, value in ask(query).items()}

    wait_for(lambda: ask_by("up", "job") == {"serving": 1, "healer": 1, "prometheus": 1}, 60, "every target")
    assert set(ask("darkroom_prefect_up").values()) == {1}
    wait_for(lambda: ask_by("darkroom_model_info == 1", "name") == {"shapes": 1}, 60, "the model's figure")
    wait_for(
        lambda: ask_by("darkroom_deployment_last_run_failed", "deployment").get("train-recipe/process") == 0,
        90,
        "the run's figure",
    )
    assert ask("darkroom_disk_free_bytes")


def test_feedback_starts_a_training_that_says_why(stack, client):
    """The service writes only once it is told to; what it writes, the worker trains with."""

    def give(number):
        image = io.BytesIO()
        Image.new("RGB", (32, 32), (number, 0, 0)).save(image, "PNG")
        form = {"files": {"image": image.getvalue()}, "data": {"label": "circle"}}
        return httpx.post(f"{stack.url('SERVING')}/v1/feedback", **form)

    assert (give(0).status_code, give(0).json()["error"]["code"]) == (404, "feedback_off")
    env_file = stack.folder / "infra/.env"
    text = env_file.read_text()
    assert "\nSERVING_OPTIONS=\n" in text
    env_file.write_text(text.replace("\nSERVING_OPTIONS=\n", "\nSERVING_OPTIONS=--feedback --log-requests=1\n"))
    stack.make("up")
    wait_for(lambda: read_served(stack) == {"shapes": "1"}, 30, "the champion")
    assert [give(number).json()["count"] for number in range(3)] == [1, 2, 3]
    predict(stack)
    wait_for(lambda: list_inbox(stack, "requests"), 30, "the log of requests")
    run(client, "watch-predictions/every-ten-minutes", enough_feedback=3)
    deployment = client.read_deployment_by_name("retrain/on-feedback").id

    def find_retraining():
        return [one for one in client.read_flow_runs(limit=50) if one.deployment_id == deployment]

    (training,) = wait_for(find_retraining, 120, "the training that the event starts")
    assert training.parameters["why"].startswith("people gave the true labels of 3 more images to shapes")
    finish(client, training)
    log = "\n".join(line.message for line in client.read_logs(limit=200) if line.flow_run_id == training.id)
    assert "with 3 images of feedback among the training images" in log
    assert predict(stack)["model"]["version"] == "1"  # the form's mode is dry_run


def list_inbox(stack, folder):
    return docker("exec", stack.containers()["worker"], "find", f"/inbox/{folder}", "-type", "f").split()


@pytest.fixture(scope="module")
def watched(stack):
    """`make watch` beside the tests: Docker itself leaves alone what `docker kill` ended."""
    process = subprocess.Popen(
        ["make", f"PYTHON={sys.executable}", "watch"], cwd=stack.folder, env=stack.environment, start_new_session=True
    )
    yield
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(30)


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("service", sorted(SERVICES))
def test_a_killed_container_comes_back_and_the_training_ends_well(stack, client, mlflow_client, service):
    before = {one.info.run_id for one in list_runs(mlflow_client)}
    epochs = 25
    training = start(client, "train-recipe/process", **SMOKE, seed=100 + sorted(SERVICES).index(service), epochs=epochs)

    def find_training():
        new = [one.info.run_id for one in list_runs(mlflow_client) if one.info.run_id not in before]
        return new and mlflow_client.get_metric_history(new[0], "train/loss") and new[0]

    run_id = wait_for(find_training, 120, "the first epoch")
    docker("kill", stack.containers()[service])
    wait_for(lambda: service in stack.containers(), 60, f"{service} again")
    finish(client, training, 420)
    assert {one.info.run_id for one in list_runs(mlflow_client)} == before | {run_id}
    assert mlflow_client.get_run(run_id).info.status == "FINISHED"
    check_epochs(mlflow_client, run_id, epochs)
    wait_for(lambda: read_served(stack) == {"shapes": "1"}, 60, "the champion")


def test_the_slot_of_a_killed_worker_is_free_again(stack, client):
    first = start(client, "train-recipe/process", **SMOKE, seed=200, epochs=400)
    slot = "darkroom-cpu"
    wait_for(lambda: client.read_global_concurrency_limit_by_name(slot).active_slots == 1, 120, "the first training")
    second = start(client, "train-recipe/process", **SMOKE, seed=201)
    wait_for(lambda: client.read_flow_run(second.id).state.name == "Running", 60, "the second training")
    time.sleep(20)
    assert client.read_flow_run(second.id).state.name == "Running"
    assert client.read_global_concurrency_limit_by_name(slot).active_slots == 1
    killed_s = time.monotonic()
    client.set_flow_run_state(first.id, cancelled(), force=True)  # so that it does not come back
    docker("exec", stack.containers()["worker"], "python", "-c", KILL_EVERYTHING)
    finish(client, second, 360 + 120)
    assert time.monotonic() - killed_s < 360 + 120


# Everything in the container but the process that asks; the first one ends with its child.
KILL_EVERYTHING = """
import os, signal
for process in os.listdir("/proc"):
    if process.isdigit() and int(process) not in (1, os.getpid()):
        os.kill(int(process), signal.SIGKILL)
"""


def cancelled():
    from prefect.states import Cancelled

    return Cancelled()


def test_a_backup_brings_everything_back(stack, client, mlflow_client, tmp_path):
    def describe():
        ended = [one for one in list_runs(mlflow_client) if one.info.status == "FINISHED"]
        runs = {one.info.run_id: one.data.metrics for one in ended}
        files = {
            run_id: sorted(file.path for file in mlflow_client.list_artifacts(run_id, "checkpoints")) for run_id in runs
        }
        champion = mlflow_client.get_model_version_by_alias("shapes", "champion")
        deployments = sorted((one.name, [str(s.schedule) for s in one.schedules]) for one in client.read_deployments())
        return runs, files, (champion.version, champion.run_id), deployments, read_served(stack), predict(stack)

    training = start(client, "train-recipe/process", **SMOKE, seed=300, epochs=400)
    slot = "darkroom-cpu"
    wait_for(lambda: client.read_global_concurrency_limit_by_name(slot).active_slots == 1, 120, "a training")
    time.sleep(10)  # so that checkpoints change while they are copied
    printed = stack.make("backup", f"TO={tmp_path / 'backup'}")
    assert "changed as we read it" not in printed
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "backup").iterdir()} == {0o600}
    client.set_flow_run_state(training.id, cancelled(), force=True)
    docker("restart", stack.containers()["worker"])
    before = describe()
    assert len(before[0]) > 1
    assert "is there already" in stack.make("backup", f"TO={tmp_path / 'backup'}", check=False)
    assert "are there; a backup goes into an empty stack" in stack.make(
        "restore", f"FROM={tmp_path / 'backup'}", check=False
    )
    stack.destroy()
    (stack.folder / "infra/.env").unlink()
    assert "shapes packed" in stack.make("restore", f"FROM={tmp_path / 'backup'}")
    run(client, "check-health/hourly")
    wait_for(lambda: read_served(stack), 30, "the champion")
    assert describe() == before
    assert client.read_global_concurrency_limit_by_name(slot).active_slots == 0


def test_down_leaves_nothing_listening(stack):
    settings = stack.settings
    stack.make("down")
    assert stack.containers() == {}
    for name, port in settings.items():
        if name.endswith("_PORT"):
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"http://127.0.0.1:{port}")
