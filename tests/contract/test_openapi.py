"""The service does what its OpenAPI description says: requests generated from it, good and bad, for every operation."""

import json
import os
import re
import shutil
import subprocess
import sys

import httpx
import pytest

from tests.contract.conftest import ROOT
from tests.unit.serving.tiny_bundle import COLOURS, release

pytestmark = pytest.mark.slow

SETTINGS = """
seed = 20260102
hooks = "generated_images.py"
continue-on-failure = true

[generation]
deterministic = true
max-examples = 100
database = "none"

[checks]
enabled = true
positive_data_acceptance.expected-statuses = [200]
negative_data_rejection.expected-statuses = [400, 404, 405, 408, 413, 415, 422]

[[operations]]
include-path = "/v1/feedback"
# 404: of an image that the log does not keep.
checks.positive_data_acceptance.expected-statuses = [200, 404]

[[operations]]
include-path-regex = "^/v2/models/"
# 404: of a version that is not served. 422: of data that do not fit their shape, which a schema cannot say.
checks.positive_data_acceptance.expected-statuses = [200, 404, 422]
"""


def read_description(url):
    """Return the description, with what only a service with certain models can say: their names and classes."""
    known = {"top_k": {"maximum": len(COLOURS)}, "model": {"enum": ["cifar10", "food"]}}
    document = httpx.get(f"{url}/openapi.json", trust_env=False).raise_for_status().json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    for parameter in (one for operation in operations for one in operation.get("parameters", ())):
        parameter["schema"] |= known.get(parameter["name"], {})
    form = document["paths"]["/v1/feedback"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    for properties in (form["properties"], document["components"]["schemas"]["FeedbackRequest"]["properties"]):
        properties["label"] = {"enum": list(COLOURS)}
        properties["model"] = {"enum": ["cifar10", "food"]}
    document["components"]["schemas"]["ReviewRequest"]["properties"]["model"] = {"enum": ["cifar10", "food", None]}
    return document


def check_description(url, folder, *options):
    (folder / "openapi.json").write_text(json.dumps(read_description(url)))
    (folder / "schemathesis.toml").write_text(SETTINGS)
    shutil.copy(ROOT / "tests" / "contract" / "generated_images.py", folder)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run", "openapi.json"]
    outcome = subprocess.run(
        [*command, "--url", url, *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    tested, generated = re.search(r"Tested: (\d+)", outcome.stdout), re.search(r"(\d+) generated", outcome.stdout)
    return int(tested[1]), int(generated[1])


def test_the_service_does_what_its_description_says(tmp_path, start_service):
    for name in ("cifar10", "food"):
        release(tmp_path / "bundles", name)
    service = start_service(tmp_path, "--log-requests", "0.2", "--keep-pictures", "--feedback", "--review")
    tested, generated = check_description(service.url, tmp_path)
    assert tested == len(read_description(service.url)["paths"])
    assert generated > 200


def test_refusals_without_a_key_are_described_too(tmp_path, start_service):
    release(tmp_path / "bundles", "cifar10", "3")
    (tmp_path / "keys").write_text("a-key-of-this-test-that-is-long-enough\n")
    service = start_service(tmp_path, "--api-keys", tmp_path / "keys")
    assert httpx.get(f"{service.url}/v1/models", trust_env=False).status_code == 401
    names = ("status_code", "content_type", "response_schema", "response_headers")
    checks = ["not_a_server_error", *(f"{name}_conformance" for name in names)]
    check_description(service.url, tmp_path, "--checks", ",".join(checks), "--max-examples", "20")


def test_every_endpoint_is_documented(start_service, tmp_path):
    release(tmp_path / "bundles", "cifar10")
    page = (ROOT / "docs" / "http.md").read_text()
    assert [path for path in read_description(start_service(tmp_path).url)["paths"] if path not in page] == []
