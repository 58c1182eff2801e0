"""Variables that are meant for other programs of the machine."""

import subprocess
import sys

from tests.contract.conftest import ROOT


def test_the_embedded_server_needs_no_proxy_and_no_password(start_darkroom, tmp_path):
    process = start_darkroom(
        *("data", "add", "shapes", "--image-size", 16),
        DARKROOM_HOME=str(tmp_path),
        HTTP_PROXY="http://127.0.0.1:9",
        HTTPS_PROXY="http://127.0.0.1:9",
        PREFECT_SERVER_API_AUTH_STRING="someone:secret",
        PREFECT_API_DATABASE_CONNECTION_URL="sqlite+aiosqlite:////nowhere/prefect.db",
    )
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out


def test_addresses_of_this_machine_are_added_to_those_without_a_proxy():
    code = "import os, flows; print(os.environ['NO_PROXY'], os.environ['no_proxy'])"
    for given in ({}, {"NO_PROXY": "intranet"}, {"no_proxy": "intranet", "NO_PROXY": "other"}):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=given, capture_output=True, text=True, check=True
        )
        direct = ",".join([*(["intranet"] if given else []), "127.0.0.1,localhost,::1"])
        assert done.stdout.split() == [direct, direct]
