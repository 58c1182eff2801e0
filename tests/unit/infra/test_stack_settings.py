import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

INFRA = Path(__file__).parents[3] / "infra"


@pytest.fixture
def stack(tmp_path):
    """infra/stack.py of a folder of its own."""
    for name in ("stack.py", "env.example", "compose.yaml", "compose.gpu.yaml"):
        shutil.copy(INFRA / name, tmp_path / name)
    spec = importlib.util.spec_from_file_location("stack_of_a_test", tmp_path / "stack.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_secrets_are_strong_all_different_and_for_one_person(stack):
    settings = stack.write_env()
    secrets = [value for value in settings.values() if len(value) > 20]
    assert len(secrets) == len(set(secrets)) == 7
    assert settings["PREFECT_AUTH"].startswith("admin:")
    assert "generate" not in "".join(settings.values())
    assert stack.ENV_FILE.stat().st_mode & 0o777 == 0o600


def test_what_is_there_stays_and_what_is_new_is_added(stack):
    first = stack.write_env()
    text = stack.ENV_FILE.read_text()
    stack.ENV_FILE.write_text(text.replace("SERVING_PORT=3000", "SERVING_PORT=3333").replace("GRAFANA_PORT=3001\n", ""))
    second = stack.write_env()
    assert second == first | {"SERVING_PORT": "3333"}
    assert stack.write_env() == second
    assert "# Of MLflow's pages and API." in stack.ENV_FILE.read_text()


def test_a_line_without_its_end_stays_a_line(stack):
    stack.ENV_FILE.write_text("DARKROOM_WEBHOOK_URL=https://example.org/secret")
    settings = stack.write_env()
    assert settings["DARKROOM_WEBHOOK_URL"] == "https://example.org/secret"
    assert stack.write_env() == settings


def test_every_setting_that_compose_reads_is_in_the_example(stack):
    used = set(re.findall(r"\$\{(\w+)", (INFRA / "compose.yaml").read_text())) - {"DARKROOM_TAG"}
    assert used == set(stack.write_env())


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]])
def test_compose_takes_the_files(stack, files):
    stack.write_env()
    command = ["docker-compose", "--env-file", str(stack.ENV_FILE)]
    for file in files:
        command += ["--file", str(INFRA / file)]
    done = subprocess.run([*command, "config"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert services["serving"]["image"] == ("darkroom-serve:latest" if len(files) > 1 else "darkroom-serve-cpu:latest")
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_the_dashboard_shows_figures_that_exist():
    dashboard = json.loads((INFRA / "grafana/dashboards/darkroom.json").read_text())
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    rules = (INFRA / "prometheus/alerts.yml").read_text()
    code = "".join(file.read_text() for folder in ("flows", "serving") for file in (INFRA.parent / folder).glob("*.py"))
    for figure in set(re.findall(r"darkroom_\w+", asked + rules)):
        assert f'"{figure}"' in code, figure
