"""Variables that are meant for other programs of the machine."""

import os
import subprocess
import sys

import pytest

from tests.contract.conftest import ROOT
from tests.integration.conftest import home_entered

TRAIN = (
    *("train", "resnet18_cifar10_exp", "--profile", "smoke"),
    *("--set", "dataset=shapes", "--set", "epochs=1", "--set", "limit_train=200"),
)


def run(start_darkroom, *arguments, **variables):
    process = start_darkroom(*arguments, **variables)
    out, _ = process.communicate(timeout=300)
    return process.returncode, out


@pytest.fixture
def _shapes(tmp_path):
    from flows.api import add_data

    with home_entered(tmp_path):
        add_data("shapes")


@pytest.mark.usefixtures("_shapes")
def test_the_embedded_server_needs_no_proxy_and_no_password(start_darkroom, tmp_path):
    status, out = run(
        *(start_darkroom, *TRAIN),
        DARKROOM_HOME=str(tmp_path),
        HTTP_PROXY="http://127.0.0.1:9",
        HTTPS_PROXY="http://127.0.0.1:9",
        PREFECT_SERVER_API_AUTH_STRING="someone:secret",
        PREFECT_API_DATABASE_CONNECTION_URL="sqlite+aiosqlite:////nowhere/prefect.db",
    )
    assert status == 0, out
    assert (tmp_path / "prefect" / "server.log").is_file()


@pytest.mark.usefixtures("_shapes")
def test_what_the_embedded_server_meets_is_in_its_log_and_one_line_says_so(start_darkroom, tmp_path):
    (tmp_path / "prefect" / "prefect.db").mkdir(parents=True)
    status, out = run(start_darkroom, *TRAIN, DARKROOM_HOME=str(tmp_path))
    log = tmp_path / "prefect" / "server.log"
    assert status == 1
    assert out.splitlines()[-1] == f"darkroom: Prefect's server did not start; is the disk full? {log} says what it met"
    assert "Traceback" not in out
    assert "unable to open database file" in log.read_text()


def test_addresses_of_this_machine_are_added_to_those_without_a_proxy():
    code = "import os, flows; print(os.environ['NO_PROXY'], os.environ['no_proxy'])"
    for given in ({}, {"NO_PROXY": "intranet"}, {"no_proxy": "intranet", "NO_PROXY": "other"}):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=given, capture_output=True, text=True, check=True
        )
        direct = ",".join([*(["intranet"] if given else []), "127.0.0.1,localhost,::1"])
        assert done.stdout.split() == [direct, direct]


def test_a_flow_asks_the_embedded_server_also_where_prefect_was_imported_before(tmp_path):
    code = (
        "import os\n"
        "from prefect.client.orchestration import get_client\n"
        "from flows.operations.orchestration import configure\n"
        "from model_code.settings import load_settings\n"
        "configure(load_settings())\n"
        "with get_client(sync_client=True) as client:\n"
        "    print(client.api_url, os.environ['PREFECT_API_URL'])\n"
    )
    given = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=given | {"DARKROOM_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    asked, started = done.stdout.splitlines()[-1].split()
    assert asked.rstrip("/") == started
