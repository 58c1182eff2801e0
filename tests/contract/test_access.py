"""Who may call: API keys, pages of other origins, and machines without the GPU that is asked for."""

import asyncio

import httpx
import pytest

from serving.bundle.session import has_cuda
from serving.http.admission import Admission
from serving.options import ServiceOptions
from tests.contract.test_launcher import launch
from tests.unit.serving.tiny_bundle import paint, release

IMAGE = {"Content-Type": "image/png"}
FIRST, SECOND = "first-key-0123456789", "second-key-0123456789"


def ask(url, **headers):
    return httpx.post(f"{url}/v1/predict", content=paint(), headers=IMAGE | headers, trust_env=False)


def test_without_a_key_of_the_file_nothing_is_answered(tmp_path, start_service):
    release(tmp_path / "bundles")
    keys = tmp_path / "keys.txt"
    keys.write_text(f"# of the web shop\n{FIRST}\n\n{SECOND}\n")
    url = start_service(tmp_path, "--api-keys", keys).url
    refused = ask(url)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["error"]["code"] == "unauthorized"
    assert httpx.get(f"{url}/v1/models", trust_env=False).status_code == 401
    assert ask(url, Authorization=f"Bearer {FIRST}x").status_code == 401
    assert ask(url, Authorization=f"Basic {FIRST}").status_code == 401
    assert ask(url, Authorization="Bearer # of the web shop").status_code == 401
    assert ask(url, Authorization=f"Bearer {FIRST}").status_code == 200
    assert ask(url, **{"X-API-Key": SECOND}).status_code == 200
    for path in ("/", "/livez", "/readyz", "/metrics", "/openapi.json"):
        assert httpx.get(f"{url}{path}", trust_env=False).status_code == 200

    keys.write_text(f"{SECOND}\n")
    assert ask(url, Authorization=f"Bearer {FIRST}").status_code == 401
    assert ask(url, Authorization=f"Bearer {SECOND}").status_code == 200
    keys.unlink()
    assert ask(url, Authorization=f"Bearer {SECOND}").status_code == 401, "nobody can say that it still counts"
    ready = httpx.get(f"{url}/readyz", trust_env=False)
    assert (ready.status_code, ready.text) == (503, "the file of API keys cannot be read; the log says why")
    assert ask(url).status_code == 401
    keys.write_text("too short\n")
    assert ask(url, Authorization=f"Bearer {SECOND}").status_code == 401, "a key that was taken away"
    keys.write_text(f"{FIRST}\n")
    assert ask(url, Authorization=f"Bearer {FIRST}").status_code == 200
    assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("text", "message"), [("# none\n", "has no API key"), ("short\n", "key 1 of"), ("\udcff" * 20, "key 1 of")]
)
def test_a_file_without_good_keys_is_one_clear_line(tmp_path, text, message):
    release(tmp_path / "bundles")
    keys = tmp_path / "keys.txt"
    keys.write_text(text, errors="surrogateescape")
    outcome = launch(tmp_path, "--port", "0", "--api-keys", str(keys))
    assert (outcome.returncode, outcome.stderr.count("\n")) == (1, 1), outcome.stderr
    assert message in outcome.stderr


def test_only_pages_of_listed_origins_may_call(tmp_path, start_service):
    release(tmp_path / "bundles")
    url = start_service(tmp_path, "--allow-origin", "https://shop.example").url
    allowed = ask(url, Origin="https://shop.example")
    assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
    assert "access-control-allow-origin" not in ask(url, Origin="https://elsewhere.example").headers
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(f"{url}/v1/predict", headers=asked, trust_env=False)
    assert preflight.headers["access-control-allow-origin"] == "https://shop.example"


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/predict", "/v1/feedback"])
def test_pages_of_other_origins_change_nothing(tmp_path, start_service, path):
    release(tmp_path / "bundles")
    url = start_service(
        tmp_path, "--feedback", "--allow-origin", "https://shop.example", "--allow-host", "a.example"
    ).url
    form = {"files": {"image": ("a.png", paint("red"), "image/png")}}
    if path == "/v1/feedback":
        form["data"] = {"label": "red"}

    def send(**headers):
        return httpx.post(url + path, headers=headers, trust_env=False, **form)

    for headers in (
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://rebound.example", "Host": "rebound.example"},
    ):
        refused = send(**headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "foreign_page")
    assert not (tmp_path / "feedback").exists()
    for headers in (
        {},
        {"Host": "any.example"},
        {"Origin": url},
        {"Origin": "https://shop.example"},
        {"Origin": "https://a.example", "Host": "a.example"},
    ):
        assert send(**headers).status_code == 200


@pytest.mark.parametrize("host", ["https://a.example", "a.example:3000", "a b", ""])
def test_a_host_that_is_no_name_is_wrong_usage(tmp_path, host):
    outcome = launch(tmp_path, "--allow-host", host)
    assert outcome.returncode == 2
    assert f"{host!r} is no host name" in outcome.stderr


def test_an_origin_with_a_path_is_wrong_usage(tmp_path):
    outcome = launch(tmp_path, "--allow-origin", "https://shop.example/page")
    assert outcome.returncode == 2
    assert "'https://shop.example/page' is no origin" in outcome.stderr


@pytest.mark.slow
@pytest.mark.skipif(has_cuda(), reason="this machine has a GPU")
def test_where_a_gpu_is_required_the_cpu_does_not_answer(tmp_path):
    release(tmp_path / "bundles")
    outcome = launch(tmp_path, "--port", "0", "--require-cuda")
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines()[-1] == (
        "error: --require-cuda: onnxruntime finds no GPU; `darkroom doctor` says what is missing"
    )


@pytest.mark.slow
@pytest.mark.skipif(has_cuda(), reason="this machine has a GPU")
def test_a_patient_service_without_the_required_gpu_is_not_ready(tmp_path, start_service):
    release(tmp_path / "bundles")
    url = start_service(tmp_path, "--require-cuda", "--wait").url
    ready = httpx.get(f"{url}/readyz", trust_env=False)
    assert ready.status_code == 503
    assert "--require-cuda: onnxruntime finds no GPU" in ready.text
    (problem,) = httpx.get(f"{url}/v1/models", trust_env=False).json()["problems"]
    assert "--require-cuda" in problem["message"]
    assert ask(url).status_code == 503


def test_a_browser_may_ask_before_it_sends_however_the_origin_was_given(make_app):
    options = ServiceOptions(allowed_origins=("HTTPS://Shop.example:443",))
    transport = httpx.ASGITransport(make_app(Admission(), 1, options))

    async def ask_before(origin):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        async with httpx.AsyncClient(transport=transport, base_url="http://darkroom") as client:
            return await client.options("/v1/predict", headers=headers)

    answer = asyncio.run(ask_before("https://shop.example"))
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://shop.example")
    refused = asyncio.run(ask_before("https://elsewhere.example"))
    assert "access-control-allow-origin" not in refused.headers
