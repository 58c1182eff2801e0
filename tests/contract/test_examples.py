"""The examples of docs/http.md, run against the real service."""

import re
import shutil
import subprocess
import sys

import pytest

from tests.contract.conftest import ROOT
from tests.unit.serving.tiny_bundle import paint, release

KEY = "a-key-of-this-test-that-is-long-enough"
PAGE = (ROOT / "docs" / "http.md").read_text()
SHELL = re.findall(r"^    (curl (?:.|\n      )*)$", PAGE, re.MULTILINE)
PYTHON = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def fit(tmp_path, start_service):
    """Return an example with the address, key, model and label of a service of this test; files are in `tmp_path`."""
    release(tmp_path / "bundles")
    (tmp_path / "keys").write_text(f"{KEY}\n")
    for name in ("cat.jpg", "dog.jpg"):
        (tmp_path / name).write_bytes(paint("red", kind="JPEG"))
    options = ("--log-requests", "1", "--keep-pictures", "--feedback", "--api-keys", tmp_path / "keys")
    url = start_service(tmp_path, *options).url

    def replace(example):
        example = example.replace("http://127.0.0.1:3000", url).replace('"KEY"', f'"{KEY}"')
        return example.replace("label=cat", "label=red").replace('"label": "cat"', '"label": "red"')

    return replace


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_lines_for_a_shell(tmp_path, fit):
    assert len(SHELL) == 6
    for line in SHELL:
        command = fit(line).replace("curl ", f"curl --noproxy '*' -sS --fail -H 'X-API-Key: {KEY}' ", 1)
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        assert "red" in done.stdout


def test_the_lines_of_python(tmp_path, fit):
    (example,) = PYTHON
    code = fit(example).replace("headers=", "trust_env=False, headers=")
    command = [sys.executable, "-c", "import time\n" + code.replace("seen =", "time.sleep(1)\nseen =")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[('cat.jpg', 'red'), ('dog.jpg', 'red')]\n"
