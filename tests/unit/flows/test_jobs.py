"""Jobs: one definition gives the command, the form and the request."""

import ast
import inspect
import socket
import subprocess
import sys
import textwrap
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

from flows.jobs import JOBS
from flows.jobs.machine import QuickStart
from flows.jobs.recipes import NewRecipe
from flows.jobs.study import TrainAll
from flows.jobs.training import Train
from model_code.errors import DarkroomError, ServiceError, UsageError

ROOT = Path(__file__).parents[3]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
SCHEDULED = [kind for kind in JOBS if kind.flow]


@pytest.mark.parametrize("kind", SCHEDULED, ids=lambda kind: kind.__name__)
def test_a_form_shows_every_field_as_it_is_defined(kind):
    from flows.operations.flow import schedule

    flow = schedule(kind)
    properties = flow.parameters.properties
    assert list(properties) == list(kind.model_fields)
    for name, field in kind.model_fields.items():
        shown = properties[name]
        assert shown.get("description") == field.description, name
        assert field.is_required() == (name in flow.parameters.required)
        if not field.is_required():
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            assert shown.get("default") == default, name
    assert flow.description == kind.__doc__.strip() or kind.__doc__.strip().startswith(flow.description.splitlines()[0])


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda one: f"{one['entrypoint']}/{one['name']}")
def test_a_deployment_is_of_a_job_and_gives_what_it_needs(deployment):
    from flows import scheduled

    module, _, name = deployment["entrypoint"].rpartition(".")
    [kind] = [one for one in SCHEDULED if one.flow == name.replace("_", "-")]
    assert module == "flows.scheduled"
    assert getattr(scheduled, name).name == kind.flow
    given = deployment.get("parameters", {})
    assert set(given) <= set(kind.model_fields)
    if deployment.get("schedules"):
        kind.make(**given)
        assert deployment["concurrency_limit"], "a run that is late would run beside the next"


def test_a_form_offers_names_and_shows_bounds():
    from flows.operations.flow import schedule
    from model_code.recipes.catalog import RECIPES

    forms = {kind.flow: schedule(kind).parameters.properties for kind in SCHEDULED}
    assert forms["train-recipe"]["recipe"]["enum"] == list(RECIPES)
    assert forms["train-recipe"]["seed"]["anyOf"][0] == {"type": "integer", "minimum": 0}
    assert "enum" not in forms["release-model"]["name"]
    assert "enum" not in forms["train-recipe"]["dataset"]
    assert forms["release-model"]["min_gain"]["anyOf"][0] == {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    metric = forms["release-model"]["metric"]
    assert (metric["enum"], metric["default"]) == (["accuracy", "macro-f1"], "accuracy")
    assert forms["watch-predictions"]["enough_feedback"]["minimum"] == 1


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("Train", {"recipe": "x", "limit_train": 0}, r"^--limit-train=0: must be at least 1$"),
        ("Train", {}, r"^RECIPE=\{\}: Field required$"),
        ("Heal", {"every_s": 0.5}, r"^--every=0.5: "),
        ("Release", {"source": "x", "name": "My dogs"}, r"^'My dogs' cannot be a registered name; use up to 64 of a-z"),
        ("Release", {"source": "x", "name": "shapes", "max_size_mb": float("nan")}, r"^--max-size-mb=nan: "),
        ("RollBack", {"name": "shapes", "until": "1"}, r"^until=1: Extra inputs are not permitted$"),
    ],
)
def test_a_value_that_cannot_be_is_one_line(kind, given, message):
    [job] = [one for one in JOBS if one.__name__ == kind]
    with pytest.raises(UsageError, match=message):
        job.make(**given)


def test_the_command_loads_no_framework_before_it_runs():
    heavy = ("torch", "prefect", "mlflow", "numpy", "onnxruntime", "rich", "asyncio")
    code = f"import sys, flows.cli; print([one for one in {heavy} if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def list_imported(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module, *(f"{node.module}.{one.name}" for one in node.names))


@cache
def find_frameworks(module):
    """Frameworks that the import of a module of this repository loads."""
    if (package := module.partition(".")[0]) in ("torch", "mlflow", "prefect"):
        return {package}
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        return set()
    return set().union(*map(find_frameworks, list_imported(ast.parse(file.read_text()).body)))


@pytest.mark.parametrize("kind", [kind for kind in JOBS if kind.command], ids=lambda kind: kind.command)
def test_a_command_that_loads_a_framework_says_so(kind):
    source = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind))))
    loaded = set().union(*map(find_frameworks, list_imported(source)))
    assert kind.loads or not loaded


def test_a_recipe_of_ones_own_says_what_it_loads_for_other_images():
    assert NewRecipe.make(name="mine", base="resnet18_cifar10_exp", dataset="beans").loading
    assert not NewRecipe.make(name="mine", base="resnet18_cifar10_exp").loading
    for kind, given in ((Train, {"recipe": "fastnet_cifar10"}), (TrainAll, {})):
        assert kind.make(**given).loading == ("PyTorch", "MLflow", "Prefect")
        assert kind.make(**given, offline=True).loading == ("PyTorch",)


def test_an_unknown_recipe_is_refused_before_any_framework_is_loaded():
    for given in ({}, {"dataset": "shapes"}, {"dataset": "shapes", "offline": True}):
        with pytest.raises(UsageError, match="no recipe 'fastnet_cifar1'; did you mean fastnet_cifar10"):
            Train.make(recipe="fastnet_cifar1", **given).check()


def test_a_taken_port_is_refused_before_any_training():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=rf"^cannot listen on 127\.0\.0\.1:{port}: .*choose another --port$"):
            QuickStart(port=port).check()
    QuickStart().check()


def test_the_answer_of_another_program_is_not_that_of_a_service_that_ended(tmp_path):
    from flows.operations.quickstart import _wait_until_ready

    service = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            service.communicate(b"\n")
            self.send_response(200)
            self.end_headers()

    log = tmp_path / "log"
    log.write_text("starting\nthe port is taken\n")
    with HTTPServer(("127.0.0.1", 0), Other) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(DarkroomError, match=r"^the service ended: the port is taken$"):
            _wait_until_ready(service, f"http://127.0.0.1:{server.server_port}", log)
        server.shutdown()


def test_a_training_opens_what_it_is_made_from_once(monkeypatch):
    from flows.experiments import inputs
    from flows.operations import training

    opened = []
    for name in ("open_dataset", "find_pretrained"):
        monkeypatch.setattr(inputs, name, lambda *_, name=name, **_more: opened.append(name))
    monkeypatch.setattr(training, "train_task", lambda inputs, _: opened.append(inputs.config.recipe))
    monkeypatch.setattr("flows.printing.runs.print_result", lambda *_, **__: None)
    job = Train(recipe="resnet18_cifar10_exp")
    job.prepare()
    job.prepare()
    job.run()
    assert opened == ["open_dataset", "find_pretrained", "resnet18_cifar10_exp"]
