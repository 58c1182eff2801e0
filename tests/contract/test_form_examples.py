"""With `--examples` the answer to a wrong form has lines for a shell, Python and JavaScript, which work as they are."""

import json
import shutil
import subprocess
import sys

import httpx
import pytest

from tests.contract.test_http import refusal
from tests.unit.serving.tiny_bundle import paint, release

KEY = "a-key-of-this-test-that-is-long-enough"
FILE = ("cat.jpg", paint("red", kind="JPEG"), "image/jpeg")
PATHS = ("/v1/predict", "/v1/explain", "/v1/feedback")
WRONG = {
    "wrong field": ({"files": {"file": FILE}}, (422, "bad_parameter")),
    "no file": ({"files": {"image": (None, "cat.jpg")}}, (422, "bad_parameter")),
    "wrong type": ({"content": b"image=cat.jpg", "headers": {"Content-Type": "text/plain"}}, (415, "wrong_type")),
    "no type": ({"content": FILE[1]}, (415, "wrong_type")),
    "no boundary": ({"content": FILE[1], "headers": {"Content-Type": "multipart/form-data"}}, (400, "bad_request")),
}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    from tests.contract.conftest import Service

    home = tmp_path_factory.mktemp("home")
    release(home / "bundles")
    (home / "keys").write_text(f"{KEY}\n")
    service = Service(home, "--examples", "--feedback", "--api-keys", home / "keys")
    yield service.url
    service.stop()


def ask(url, path, body, **headers):
    body = body | {"headers": {"X-API-Key": KEY} | body.get("headers", {}) | headers}
    return httpx.post(f"{url}{path}", trust_env=False, **body)


def read_examples(url, path, **headers):
    return ask(url, path, WRONG["wrong field"][0], **headers).json()["error"]["examples"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("wrong", WRONG)
def test_every_wrong_form_is_answered_with_them(url, path, wrong):
    body, expected = WRONG[wrong]
    response = ask(url, path, body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == expected
    assert sorted(error["examples"]) == ["curl", "javascript", "python"]
    assert all(f"{url}{path}" in line and "KEY" in line and "\n" not in line for line in error["examples"].values())


def test_other_errors_have_none(url):
    response = ask(url, "/v1/predict", {"files": {"image": ("a.png", b"no image", "image/png")}})
    assert refusal(response) == (400, "not_a_picture")
    response = ask(url, "/v1/predict?top_k=none", {"files": {"image": FILE}})
    assert refusal(response) == (422, "bad_parameter")
    response = ask(url, "/v1/review", {"content": b"{}"})
    assert refusal(response) == (404, "review_off")


def test_nobody_gets_them_without_the_option(client):
    assert refusal(client.post("/v1/predict", files={"file": FILE})) == (422, "bad_parameter")


def fit(line):
    return line.replace("KEY", KEY).replace(f"X-API-{KEY}", "X-API-Key").replace("label=cat", "label=red")


def expect(path, body):
    return body["label"] == "red" if path == "/v1/explain" else "red" in json.dumps(body)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("path", PATHS)
def test_the_line_for_a_shell_works(url, tmp_path, path):
    (tmp_path / "cat.jpg").write_bytes(FILE[1])
    line = fit(read_examples(url, path)["curl"]).replace("curl ", "curl --noproxy '*' -sS --fail ", 1)
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert expect(path, json.loads(done.stdout))


@pytest.mark.parametrize("path", PATHS)
def test_the_line_of_python_works(url, tmp_path, path):
    (tmp_path / "cat.jpg").write_bytes(FILE[1])
    line = fit(read_examples(url, path)["python"]).replace('"label": "cat"', '"label": "red"')
    line = line.replace("files=", "trust_env=False, files=")
    done = subprocess.run([sys.executable, "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'red'" in done.stdout


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("path", PATHS)
def test_the_line_of_javascript_works(url, tmp_path, path):
    (tmp_path / "cat.jpg").write_bytes(FILE[1])
    line = fit(read_examples(url, path)["javascript"]).replace('"label", "cat"', '"label", "red"')
    code = f"""
        import {{ readFileSync }} from "node:fs";
        const input = {{ files: [new File([readFileSync("cat.jpg")], "cat.jpg", {{ type: "image/jpeg" }})] }};
        {line}
        console.log(JSON.stringify(answer));
    """
    command = [
        "node",
        "--input-type=module",
        "-e",
        code.replace("new File(", "new (await import('node:buffer')).File("),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert expect(path, json.loads(done.stdout))


@pytest.mark.parametrize(
    ("headers", "address"),
    [
        ({"Host": "photos.example.org"}, "http://photos.example.org/v1/predict"),
        ({"Host": "a.example", "X-Forwarded-Prefix": "/ml"}, "http://a.example/ml/v1/predict"),
        ({"Host": "[::1]:3000"}, "http://[::1]:3000/v1/predict"),
        ({"Host": "a';rm -rf ~;'"}, "http://127.0.0.1:3000/v1/predict"),
    ],
)
def test_the_address_is_the_one_that_the_client_asked(url, headers, address):
    assert read_examples(url, "/v1/predict", **headers)["curl"].endswith(f" {address}")
