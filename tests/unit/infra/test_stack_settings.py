import importlib.util
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
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


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """A docker without Compose that writes down what it is asked; runs the containers of the file `running`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "running").touch()
    for name, body in {
        "docker": f"""
echo "docker $*" >> {tmp_path}/asked
case $1 in
compose) exit 1 ;;
ps) cat {tmp_path}/running ;;
exec) exit 7 ;;
esac""",
        "docker-compose": f'echo "docker-compose $*" >> {tmp_path}/asked',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return tmp_path


@pytest.fixture
def run(stack, docker, monkeypatch, capfd):
    """Run infra/stack.py; returns its exit status and the lines of its errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["stack.py", *map(str, arguments)])
        status = stack.main()
        return status, capfd.readouterr().err.splitlines()

    return run


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


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
def test_the_service_takes_options_from_the_settings(stack):
    def read_service():
        stack.write_env()
        command = ["docker-compose", "--env-file", stack.ENV_FILE, "--file", INFRA / "compose.yaml", "config"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return yaml.safe_load(done.stdout)["services"]["serving"]

    served = read_service()
    dockerfile = (INFRA.parent / "Dockerfile").read_text()
    (start,) = re.findall(r'^CMD (\["python", "-P".*\])$', dockerfile, re.MULTILINE)
    assert shlex.split(served["command"].replace("=", " ")) == json.loads(start)
    # It decodes what strangers send: of the home it writes nothing.
    assert {volume.split(":")[0]: volume.split(":")[2:] for volume in served["volumes"]} == {
        "home": ["ro"],
        "inbox": ["rw"],
    }
    text = stack.ENV_FILE.read_text()
    stack.ENV_FILE.write_text(text.replace("SERVING_OPTIONS=", "SERVING_OPTIONS=--feedback --log-requests=0.05"))
    changed = read_service()
    assert changed["command"] == f"{served['command'].rstrip()} --feedback --log-requests=0.05"
    assert changed["volumes"] == served["volumes"]


def test_only_the_service_writes_the_inbox_and_only_workers_the_home():
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    modes = {
        (name, volume.split(":")[0]): volume.split(":")[2:]
        for name, service in services.items()
        for volume in service.get("volumes", [])
        if volume.split(":")[0] in ("home", "inbox")
    }
    writers = {key for key, mode in modes.items() if mode != ["ro"]}
    assert writers == {("serving", "inbox"), ("worker", "home"), ("clerk", "home")}
    assert ("worker", "inbox") in modes


def test_what_asks_for_no_password_is_not_published():
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    assert services["prometheus"]["ports"] == ["127.0.0.1:${PROMETHEUS_PORT:-9090}:9090"]
    published = {name for name, service in services.items() if "DARKROOM_BIND" in str(service.get("ports"))}
    assert published == {"mlflow", "prefect", "serving", "grafana"}


def test_the_dashboard_shows_figures_that_exist():
    dashboard = json.loads((INFRA / "grafana/dashboards/darkroom.json").read_text())
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    rules = (INFRA / "prometheus/alerts.yml").read_text()
    code = "".join(
        file.read_text() for folder in ("flows", "serving") for file in (INFRA.parent / folder).rglob("*.py")
    )
    for figure in set(re.findall(r"darkroom_\w+", asked + rules)):
        assert f'"{figure.removesuffix("_bucket")}"' in code, figure


def test_a_command_in_a_container_ends_as_it_does(run, docker):
    assert run("exec", "worker", "false") == (1, ["stack: worker is not running; `make up` first"])
    (docker / "running").write_text("1a2b\n")
    assert run("exec", "worker", "darkroom", "train", "--help") == (7, [])
    assert (docker / "asked").read_text().splitlines()[-1] == "docker exec --interactive 1a2b darkroom train --help"


def test_the_stack_can_be_stopped_without_its_settings(run, stack, docker):
    assert run("down") == (0, [])
    assert f"--env-file {stack.HERE / 'env.example'} " in (docker / "asked").read_text()


@pytest.mark.parametrize("folder", ["file/backup", "/proc/backup"])
def test_a_backup_that_cannot_be_written_is_one_line(run, stack, docker, folder):
    stack.write_env()
    (docker / "running").write_text("1a2b\n")
    (docker / "file").touch()
    status, lines = run("backup", docker / folder)
    assert status == 1
    assert len(lines) == 1
    assert lines[0].startswith(f"stack: {docker / folder} cannot be written: ")


def test_a_backup_that_fails_leaves_nothing(run, stack, docker):
    stack.write_env()
    assert run("backup", docker / "new") == (1, ["stack: postgres is not running; `make up` first"])
    (docker / "running").write_text("1a2b\n")
    status, _ = run("backup", docker / "new")
    assert status == 1
    assert list(docker.glob("new*")) == []


def test_make_takes_folders_with_spaces():
    makefile = INFRA.parent
    for target, name in (("backup", "TO"), ("restore", "FROM")):
        done = subprocess.run(
            ["make", "--dry-run", target, f"{name}=/a b/c"], cwd=makefile, capture_output=True, text=True, check=True
        )
        assert f'{target} "/a b/c"' in done.stdout


def test_taken_ports_are_named_before_anything_starts(stack, docker):
    settings = stack.write_env()
    names = ["MLFLOW_PORT", "PREFECT_PORT"]
    with socket.create_server(("127.0.0.1", 0)) as other, socket.create_server(("127.0.0.1", 0)) as free:
        taken = str(other.getsockname()[1])
        settings |= {"MLFLOW_PORT": str(free.getsockname()[1]), "PREFECT_PORT": taken}
        free.close()
        message = f"port {taken} is taken by another program; change PREFECT_PORT in {stack.ENV_FILE}, then `make up`"
        with pytest.raises(stack.StackError, match=re.escape(message)):
            stack.check_ports(settings, names)
        stack.check_ports(settings, ["MLFLOW_PORT"])
        stack._list_published = lambda: {taken}  # by this stack itself
        stack.check_ports(settings, names)
    for port, why in ((settings["MLFLOW_PORT"], "are both"), ("80000", "is no port"), ("", "is no port")):
        with pytest.raises(stack.StackError, match=f"PREFECT_PORT.*{why}"):
            stack.check_ports(settings | {"PREFECT_PORT": port}, names)


def test_watching_pauses_while_the_stack_is_changed(stack, docker, monkeypatch):
    watched = stack.Stack(has_gpu=False)
    rounds = []

    def sleep(_):
        rounds.append((docker / "asked").read_text().count("docker ps"))
        if len(rounds) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(stack.time, "sleep", sleep)
    monkeypatch.setattr(watched, "_inspect", lambda: stack._docker("ps") and [])
    with stack._alone(), pytest.raises(KeyboardInterrupt):
        watched.watch()
    rounds.clear()
    assert "docker ps" not in (docker / "asked").read_text()
    with pytest.raises(KeyboardInterrupt):
        watched.watch()
    assert rounds == [1, 2]


def test_a_backup_says_which_images_there_were(stack, capsys):
    manifest = {"name": "cifar10", "image_size": 32, "source": "c.tgz", "checksum": "1a", "classes": []}
    packed = stack.read_images("\n".join([json.dumps(manifest), "{damaged", json.dumps(manifest | {"name": "shapes"})]))
    assert [one["name"] for one in packed] == ["cifar10", "shapes"]
    command = "  python3 infra/stack.py exec worker darkroom data add cifar10 --image-size 32"
    assert stack.describe_images(packed).splitlines()[1:] == [f"{command} --from …   # was c.tgz"]
    (known,) = stack.read_images(json.dumps(manifest | {"source_paths": ["/images/c.tgz", "/b d"]}))
    assert stack.describe_images([known]).splitlines()[1:] == [
        f"{command} --from /images/c.tgz --from '/b d'   # was c.tgz"
    ]
    assert stack.describe_images(packed[1:]) == ""
    extended = {"name": "cifar10-with-feedback", "source_paths": ["/data/feedback/cifar10"]}
    lines = stack.describe_images([known | extended, known]).splitlines()[1:]
    assert [line.split(" data add ")[1].split()[0] for line in lines] == ["cifar10", "cifar10-with-feedback"]


def test_manifests_are_printed_one_in_a_line(stack, tmp_path):
    for name in ("one", "two"):
        (tmp_path / "cache" / name).mkdir(parents=True)
        (tmp_path / "cache" / name / "manifest.json").write_text(f'{{\n  "name": "{name}"\n}}\n')
    command = stack.PRINT_MANIFESTS.replace("/volume", str(tmp_path))
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert [json.loads(line)["name"] for line in done.stdout.splitlines()] == ["one", "two"]
    shutil.rmtree(tmp_path / "cache")
    assert subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout == ""


def test_a_backup_without_a_volume_is_refused_before_anything_is_made(run, tmp_path):
    folder = tmp_path / "backup"
    folder.mkdir()
    for name in ("written", "env", "artifacts.tar", "inbox.tar"):
        (folder / name).touch()
    status, errors = run("restore", folder)
    assert status == 1
    assert "lacks home.tar" in errors[-1]
    assert "volume" not in (tmp_path / "asked").read_text()
