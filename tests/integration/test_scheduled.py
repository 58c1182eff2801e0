"""Deployments and healing on a real Prefect server, without containers."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest
import yaml

from serving.bundle.store import read_champion
from tests.integration.conftest import COMMAND, home_entered
from tests.unit.serving.tiny_bundle import paint, release
from tests.unit.tracking.small_store import begin_store

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def prefect_home(tmp_path_factory):
    return tmp_path_factory.mktemp("prefect-server")


@pytest.fixture(scope="module")
def api(prefect_home):
    """The address of a server with every deployment of prefect.yaml."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/api"
    environment = os.environ | {"PREFECT_HOME": str(prefect_home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    environment["PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL"] = "0.2"
    command = [sys.executable, "-P", "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (prefect_home / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (prefect_home / "log").read_text()
                assert time.monotonic() < deadline_s, "Prefect's server does not answer"
                time.sleep(0.2)
        with asking(address, prefect_home):
            from flows.operations.deployment import deploy_all

            deploy_all()
        yield address
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def asking(address, prefect_home, folder=ROOT):
    """Let this process, and what it starts, ask the server while the block runs, from a folder."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_API_URL: address}):
        patch.setenv("PREFECT_API_URL", address)
        patch.setenv("PREFECT_HOME", str(prefect_home))
        patch.chdir(folder)
        yield


@pytest.fixture
def client(api, prefect_home):
    from prefect.client.orchestration import get_client

    with asking(api, prefect_home), get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def told(monkeypatch):
    """What a webhook was told."""
    contents = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            contents.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("DARKROOM_WEBHOOK_URL", f"http://127.0.0.1:{server.server_port}")
    yield contents
    server.shutdown()
    server.server_close()


def start_run(client, deployment="train-recipe/process"):
    """A flow run that says that it is running, and has no process."""
    from prefect.states import Running

    found = client.read_deployment_by_name(deployment)
    run = client.create_flow_run_from_deployment(found.id, parameters={"recipe": "resnet18_cifar10_exp"})
    client.set_flow_run_state(run.id, Running(), force=True)
    return run


def beat(client, run):
    """What a flow run says every half minute."""
    from prefect.events.schemas.events import Event, Resource

    from flows.operations.healing import HEARTBEAT

    resource = Resource({"prefect.resource.id": f"prefect.flow-run.{run.id}"})
    client.request("POST", "/events", json=[Event(event=HEARTBEAT, resource=resource).model_dump(mode="json")])


def after(seconds):
    return datetime.now(UTC) + timedelta(seconds=seconds)


def test_every_deployment_is_there_with_its_form_and_schedule(client, darkroom):
    flows = {flow.id: flow.name for flow in client.read_flows()}
    found = {f"{flows[one.flow_id]}/{one.name}": one for one in client.read_deployments()}
    written = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    schedules = {
        f"{one['entrypoint'].removeprefix('flows.scheduled.').replace('_', '-')}/{one['name']}": [
            schedule["cron"] for schedule in one.get("schedules", ())
        ]
        for one in written
    }
    assert {name: [one.schedule.cron for one in kept.schedules] for name, kept in found.items()} == schedules
    assert {"train-recipe/process", "train-every-recipe/nightly", "retrain/on-feedback"} <= set(found)
    form = found["train-recipe/process"].parameter_openapi_schema["properties"]
    assert {"resnet18_cifar10_exp", "simsiam_cifar10"} <= set(form["recipe"]["enum"])
    assert form["profile"]["enum"] == ["full", "smoke"]
    nightly = found["train-every-recipe/nightly"]
    assert nightly.global_concurrency_limit.limit == 1
    assert nightly.concurrency_options.collision_strategy == "CANCEL_NEW"
    again = darkroom("deploy")
    assert again.status == 0, again.err
    assert "there already" in again.out
    assert len(client.read_deployments()) == len(found)


def test_deploying_elsewhere_is_one_line(darkroom, tmp_path, api, prefect_home):
    with asking(api, prefect_home, tmp_path):
        done = darkroom("deploy")
    assert done.status == 2
    assert done.err.splitlines() == [
        f"darkroom: {tmp_path}/prefect.yaml is not there; run `darkroom deploy` where prefect.yaml is"
    ]


def test_schedules_make_runs(client):
    """The server's own scheduler; SQLAlchemy 2.1 stopped it without a word."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    nightly = DeploymentFilter(name=DeploymentFilterName(any_=["nightly"]))
    deadline_s = time.monotonic() + 90
    while not (runs := client.read_flow_runs(deployment_filter=nightly)):
        assert time.monotonic() < deadline_s, "nothing is scheduled"
        time.sleep(1)
    assert all(run.auto_scheduled for run in runs)


def test_a_silent_run_starts_again_and_is_crashed_after_its_last_try(client, told):
    from prefect.states import Running

    from flows.operations.healing import MOST_TRIES, heal

    run = start_run(client)
    silent = start_run(client)  # never said that it lives, so nothing is known of it
    beat(client, run)
    assert heal(client, after(0)) == []
    for tries in range(1, MOST_TRIES + 1):
        (line,) = wait_for(lambda: heal(client, after(130)), 120, "the end of the silence")
        found = client.read_flow_run(run.id)
        assert found.run_count == tries
        if tries < MOST_TRIES:
            assert line == f"{run.name}: silent, starts again"
            assert (found.state.name, found.state.type.value) == ("AwaitingRetry", "SCHEDULED")
            assert run.id in list_offered(client)
            client.set_flow_run_state(run.id, Running(), force=True)
    assert found.state.name == "Crashed"
    assert [(post["flow"], post["run_id"], post["state"]) for post in told] == [
        ("train-recipe", str(run.id), "Crashed")
    ]
    assert client.read_flow_run(silent.id).state.name == "Running"


def list_offered(client):
    """Flow runs that a worker would be given now."""
    offered = client.get_scheduled_flow_runs_for_work_pool("darkroom", scheduled_before=after(9))
    return {one.flow_run.id for one in offered}


def test_a_run_that_failed_once_and_was_killed_then_starts_again(client):
    """Prefect marks it for a retry in its own process, which is gone."""
    from prefect.client.schemas.objects import FlowRunPolicy
    from prefect.states import Failed, Running

    from flows.operations.healing import heal

    run = start_run(client)
    client.update_flow_run(run.id, empirical_policy=FlowRunPolicy(retries=2, retry_delay=0))
    beat(client, run)
    client.set_flow_run_state(run.id, Failed())
    retried = client.read_flow_run(run.id)
    assert (retried.state.name, retried.empirical_policy.retry_type) == ("AwaitingRetry", "in_process")
    assert run.id not in list_offered(client)
    wait_for(lambda: any(run.name in line for line in heal(client, after(130))), 120, "the healing of its pause")
    assert run.id in list_offered(client)
    client.set_flow_run_state(run.id, Running(), force=True)
    assert any(run.name in line for line in heal(client, after(130)))
    assert run.id in list_offered(client)


def test_a_run_that_lives_is_left_alone(client, prefect_home):
    from flows.operations import healing

    run = start_run(client)
    with sqlite3.connect(prefect_home / "prefect.db", timeout=30) as database:
        began = "strftime('%Y-%m-%d %H:%M:%f', timestamp, '-5 minutes')"
        database.execute(f"UPDATE flow_run_state SET timestamp = {began} WHERE flow_run_id = ?", [str(run.id)])
    assert client.read_flow_run(run.id).state.timestamp < after(-200)
    beat(client, run)
    wait_for(lambda: healing._is_silent(client, client.read_flow_run(run.id), after(300)), 60, "the event")
    assert not any(run.name in line for line in healing.heal(client, after(0)))
    assert any(f"{run.name}: silent, starts again" in line for line in healing.heal(client, after(121)))


def test_a_worker_that_died_before_it_began_a_run(client):
    from prefect.states import Pending

    from flows.operations.healing import heal

    found = {kind: client.read_deployment_by_name(f"train-recipe/{kind}") for kind in ("process", "kubernetes")}
    parameters = {"recipe": "resnet18_cifar10_exp"}
    runs = {kind: client.create_flow_run_from_deployment(one.id, parameters=parameters) for kind, one in found.items()}
    for run in runs.values():
        client.set_flow_run_state(run.id, Pending(), force=True)
    assert not any(run.name in line for line in heal(client, after(130)) for run in runs.values())
    lines = heal(client, after(1000))
    assert any(runs["process"].name in line for line in lines)
    assert not any(runs["kubernetes"].name in line for line in lines)  # a cluster may need long for a job


def test_of_late_runs_the_newest_is_kept(client, prefect_home):
    from prefect.states import Scheduled

    from flows.operations.healing import heal

    found = client.read_deployment_by_name("check-health/hourly")
    runs = [
        client.create_flow_run_from_deployment(found.id, state=Scheduled(scheduled_time=after(-3600 * hours)))
        for hours in (3, 2, 1)
    ]
    with sqlite3.connect(prefect_home / "prefect.db", timeout=30) as database:  # what the scheduler sets
        ids = [str(run.id) for run in runs]
        changed = database.execute("UPDATE flow_run SET auto_scheduled = 1 WHERE id IN (?, ?, ?)", ids)
        assert changed.rowcount == 3
    heal(client, after(0))
    states = [client.read_flow_run(run.id).state for run in runs]
    assert [state.type.value for state in states] == ["CANCELLED", "CANCELLED", "SCHEDULED"]
    assert states[0].message == "skipped: a newer run of its schedule is due"


def test_a_device_is_a_slot_of_the_server(client, tmp_path, capsys):
    from flows.operations.device_slot import hold_device, name_slot

    with hold_device(tmp_path, "cpu"):
        assert client.read_global_concurrency_limit_by_name(name_slot("cpu")).active_slots == 1
        waiting = Thread(target=wait_for_device, args=(tmp_path / "elsewhere",), daemon=True)
        waiting.start()
        waiting.join(5)
        assert waiting.is_alive()
        assert "another run holds darkroom-cpu; waiting for it" in capsys.readouterr().out
    waiting.join(10)  # Prefect itself would try again after up to half a minute
    assert not waiting.is_alive()
    assert client.read_global_concurrency_limit_by_name(name_slot("cpu")).active_slots == 0


def wait_for_device(locks_dir):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.operations.device_slot import hold_device

    with temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]}), hold_device(locks_dir, "cpu"):
        pass


def test_feedback_and_drift_start_trainings_that_say_why(client, tmp_path, monkeypatch):
    """The server answers each event with one run; the same cause again starts none."""
    from flows.scheduled import watch_predictions

    release(tmp_path / "bundles")
    for number in range(3):
        image = tmp_path / f"feedback/cifar10/red/{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(paint())
    models = {"models": [{"name": "cifar10", "version": "1", "drift_score": 0.4}], "problems": []}
    with answering(models) as (address, keys):
        monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
        monkeypatch.setenv("DARKROOM_SERVICE_URL", address)
        monkeypatch.setenv("DARKROOM_API_KEY", "0123456789abcdef")
        for _ in range(2):
            assert watch_predictions(enough_feedback=3, return_state=True).is_completed()
    assert keys == ["0123456789abcdef"] * 2
    runs = wait_for(lambda: len(found := list_runs(client, "on-feedback")) > 1 and found, 180, "the second training")
    assert {run.parameters["name"] for run in runs} == {"cifar10"}
    assert sorted(run.parameters["why"] for run in runs) == [
        "people gave the true labels of 3 more images to cifar10, 3 are enough",
        "the predictions of cifar10 version 1 drift: their confidence is 0.40 away from that on the images it was "
        "measured on, 0.25 is allowed",
    ]
    time.sleep(5)
    assert len(list_runs(client, "on-feedback")) == 2
    for run in runs:
        client.delete_flow_run(run.id)


def list_runs(client, deployment):
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    return client.read_flow_runs(deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[deployment])))


@contextmanager
def answering(content):
    """A service that answers every GET with the same, and keeps the keys that it was shown."""
    keys = []

    class Service(BaseHTTPRequestHandler):
        def do_GET(self):
            keys.append(self.headers["X-API-Key"])
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Service)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", keys
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [(["nonsense=3"], "has no setting 'nonsense'"), (["dataset=shapes"], "data set 'shapes' is not in")],
)
def test_what_only_a_person_can_mend_fails_at_once(client, told, tmp_path, monkeypatch, settings, reason):
    from flows.scheduled import train_recipe

    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    state = train_recipe.with_options(retry_delay_seconds=0)(
        recipe="resnet18_cifar10_exp", profile="smoke", settings=settings, return_state=True
    )
    assert state.name == "Failed"
    assert reason in state.message
    assert client.read_flow_run(state.state_details.flow_run_id).run_count == 1
    assert len(told) == 1


def test_what_may_mend_itself_is_tried_again(client, told, monkeypatch):
    from flows import scheduled
    from flows.experiments import inputs
    from model_code.errors import DownloadError

    def fail(*_, **__):
        raise DownloadError("the line is dead")

    monkeypatch.setattr("model_code.data.cache.read_manifest", lambda *_: None)
    monkeypatch.setattr(inputs, "open_inputs", fail)
    state = scheduled.train_recipe.with_options(retry_delay_seconds=0)(recipe="resnet18_cifar10_exp", return_state=True)
    assert client.read_flow_run(state.state_details.flow_run_id).run_count == 3


@pytest.fixture(scope="module")
def worked_in(tmp_path_factory):
    """The home that workers work in, without images."""
    home = tmp_path_factory.mktemp("worked-in")
    begin_store(home)
    return home


@pytest.fixture(scope="module")
def worker(api, prefect_home, worked_in):
    """The process of a worker, to which the tests before it leave no run; the last test kills it."""
    from prefect.client.orchestration import get_client

    with asking(api, prefect_home), get_client(sync_client=True) as client:
        for run_id in list_offered(client):
            client.delete_flow_run(run_id)
    with a_worker(make_environment(api, prefect_home, worked_in)) as process:
        yield process


@pytest.mark.usefixtures("worker", "few_shapes")
def test_a_run_that_failed_for_missing_images_goes_on_when_they_are_there(client, worked_in):
    """As "Retry" does in Prefect's pages."""
    from prefect.states import Scheduled

    from flows.api import add_data

    found = client.read_deployment_by_name("train-recipe/process")
    settings = ["dataset=shapes", "limit_train=400"]
    parameters = {"recipe": "resnet18_cifar10_exp", "epochs": 1, "profile": "smoke", "settings": settings}
    run = client.create_flow_run_from_deployment(found.id, parameters=parameters)
    wait_for(lambda: has_state(client, run, "Failed"), 300, "the failure")
    assert "data set 'shapes' is not in" in client.read_flow_run(run.id).state.message
    with home_entered(worked_in):
        add_data("shapes")
    client.set_flow_run_state(run.id, Scheduled(name="AwaitingRetry"))
    wait_for(lambda: has_state(client, run, "Completed"), 300, "the end of the second try")


def has_state(client, run, name):
    return client.read_flow_run(run.id).state.name == name


def make_environment(api, prefect_home, home):
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {"PREFECT_API_URL": api, "PREFECT_HOME": str(prefect_home), "DARKROOM_HOME": str(home)}
    return environment | {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30", "PREFECT_WORKER_QUERY_SECONDS": "1"}


def test_an_error_of_a_command_is_one_line_beside_a_server_too(api, prefect_home, tmp_path):
    environment = make_environment(api, prefect_home, tmp_path)
    command = [COMMAND, "data", "add", "pets", "--from", str(tmp_path / "nowhere")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"darkroom: no such file or folder: {tmp_path}/nowhere; give a folder, a zip or a tar that exists"
    ]


@pytest.fixture
def refusing():
    """The port of a server that answers 401 to everybody."""

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(401)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Refusing)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("command", ["deploy", "heal"])
@pytest.mark.parametrize(
    ("password", "what"), [({}, "is not set"), ({"PREFECT_API_AUTH_STRING": "admin:wrong"}, "is wrong")]
)
def test_a_wrong_password_is_one_line(try_server, refusing, tmp_path, command, password, what):
    address = f"http://127.0.0.1:{refusing}/api"
    status, lines = try_server(command, tmp_path, PREFECT_API_URL=address, **password)
    assert status == 2
    (line,) = lines
    assert line.startswith(f"darkroom: Prefect at {address} answers 401: PREFECT_API_AUTH_STRING {what}; ")


def test_a_wrong_address_is_one_line(try_server, api, tmp_path):
    for wrong in ("http://127.0.0.1:9/api", api.removesuffix("/api")):
        status, (line,) = try_server("deploy", tmp_path, PREFECT_API_URL=wrong)
        assert status == 2
        assert line.startswith(f"darkroom: no Prefect answers at PREFECT_API_URL={wrong}; ")


def test_healing_needs_a_server_and_a_free_port(try_server, refusing, tmp_path):
    assert try_server("heal", tmp_path) == (
        2,
        ["darkroom: PREFECT_API_URL is not set; name the Prefect server, e.g. http://127.0.0.1:4200/api"],
    )
    address = f"http://127.0.0.1:{refusing}/api"
    assert try_server("heal", tmp_path, f"--metrics-port={refusing}", PREFECT_API_URL=address) == (
        2,
        [f"darkroom: --metrics-port {refusing}: Address already in use; give a free one"],
    )


@pytest.fixture
def try_server(darkroom):
    """Run a command that asks a Prefect server; its exit status and its lines of errors come back."""
    from prefect.context import refresh_global_settings_context

    def run(command, home, *options, **environment):
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("PREFECT_API")]:
                patch.delenv(name)
            for name, value in {"PREFECT_HOME": str(home), **environment}.items():
                patch.setenv(name, value)
            patch.chdir(ROOT)
            refresh_global_settings_context()
            done = darkroom(command, *options)
        return done.status, done.err.splitlines()

    yield run
    refresh_global_settings_context()


@pytest.mark.usefixtures("few_shapes")
def test_a_killed_worker_loses_nothing_of_the_study(client, api, prefect_home, worked_in, worker):
    """The worker and what it started are killed in a training; another one goes on after the healing, to the report."""
    from flows.api import add_data
    from flows.operations.healing import heal

    home = worked_in
    with home_entered(home):
        add_data("shapes")
    before = set(home.glob("checkpoints/*/run.json"))
    found = client.read_deployment_by_name("train-every-recipe/weekly")
    assert found.parameters == {"profile": "full", "release": True}
    settings = ["dataset=shapes", "epochs=8", "limit_train=400"]
    parameters = {"only": ["resnet18_cifar10_exp"], "profile": "smoke", "settings": settings}
    run = client.create_flow_run_from_deployment(found.id, parameters=parameters)
    wait_for(lambda: list(home.glob("checkpoints/*/state.pt")), 300, "a checkpoint")
    kill_tree(worker.pid)
    (folder,) = set(home.glob("checkpoints/*/run.json")) - before
    assert not (folder.parent / "result.json").exists()
    assert client.read_flow_run(run.id).state.name == "Running"
    name = client.read_flow_run(run.id).name
    wait_for(lambda: any(f"{name}: silent" in line for line in heal(client, after(130))), 120, "the healing")

    def is_over():
        return client.read_flow_run(run.id).state.is_final()

    with a_worker(make_environment(api, prefect_home, home)):
        wait_for(is_over, 900, "the end of the run")
    state = client.read_flow_run(run.id).state
    assert state.name == "Completed", state.message
    assert read_champion(home / "bundles", "shapes")[2].run_id == folder.parent.name
    assert (home / "report" / "report.html").is_file()
    assert (folder.parent / "result.json").exists()
    assert set(home.glob("checkpoints/*/run.json")) == before | {folder}
    assert count_epochs(home, folder.parent.name) == dict.fromkeys(range(1, 9), 1)


@contextmanager
def a_worker(environment):
    command = [sys.executable, "-P", "-m", "prefect", "worker", "start", "--pool", "darkroom"]
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        kill_tree(process.pid)
        process.wait(30)


def kill_tree(pid):
    """Kill a process with all that it started, as the end of its container does."""
    try:
        first = psutil.Process(pid)
        for process in [first, *first.children(recursive=True)]:
            process.kill()
    except psutil.NoSuchProcess:
        pass


def wait_for(condition, seconds, what):
    deadline_s = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"{what} does not come"
        time.sleep(0.2)
    return found


def count_epochs(home, run_id):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    # The study above the training is a run too, of no kind.
    runs = client.search_runs([client.get_experiment_by_name("darkroom").experiment_id], "tags.kind LIKE '%'")
    assert {run.info.run_id for run in runs} == {file.parent.name for file in home.glob("checkpoints/*/run.json")}
    assert {run.info.status for run in runs} == {"FINISHED"}
    return Counter(metric.step for metric in client.get_metric_history(run_id, "train/loss"))
