"""Prometheus' own tool on its configuration, and on the alerts that should fire."""

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.containers

FOLDER = Path(__file__).parents[2] / "infra/prometheus"


def check(folder, *arguments):
    mount = f"{folder}:/etc/prometheus:ro"
    command = ["docker", "run", "--rm", "--volume", mount, "--workdir", "/etc/prometheus", "--entrypoint", "promtool"]
    return subprocess.run(
        [*command, "prom/prometheus:v2.42.0", *arguments], capture_output=True, text=True, check=False
    )


def test_the_configuration_and_its_rules_are_valid():
    done = check(FOLDER, "check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stderr
    assert "rules found" in done.stdout


def test_every_alert_fires_when_it_should():
    done = check(FOLDER, "test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    alerts = {line.split()[-1] for line in (FOLDER / "alerts.yml").read_text().splitlines() if "- alert:" in line}
    tests = (FOLDER / "alerts_test.yml").read_text()
    assert {alert for alert in alerts if f'"{alert}"' not in tests} == set()


def test_a_wrong_rule_is_found(tmp_path):
    for file in FOLDER.iterdir():
        (tmp_path / file.name).write_text(file.read_text().replace('up{job="serving"} == 0', 'up{job="serving"} == 2'))
    tmp_path.chmod(0o755)
    assert check(tmp_path, "test", "rules", "alerts_test.yml").returncode != 0
