"""What the service's benchmark reads and sends."""

import sys

import httpx
import pytest

from benchmarks import serving
from benchmarks.services.batches import build_multipart
from benchmarks.services.contenders import describe_contenders, start
from benchmarks.services.endurance import probe, summarise_probes
from benchmarks.services.figures import format_summary, summarise
from benchmarks.services.http_load import count_refused, read_figures
from tests.unit.serving.tiny_bundle import paint, release

SAID = """unable to say something
{"statuses": {"200": 300, "503": 40, "201": 100}, "failures": 2, "seconds": 2.0, "p50_ms": 1.5, "p99_ms": 9.0}"""


def test_the_rate_is_that_of_good_answers():
    found = read_figures(SAID)
    assert found["requests_per_s"] == 200
    assert count_refused(found) == 42


def test_every_image_is_in_the_body():
    body = build_multipart(b"an image", 64)
    assert body.content_type.startswith("multipart/form-data; boundary=")
    assert body.data.count(b"an image") == 64
    assert body.data.count(b'name="image"') == 64


def test_latencies_are_summarised_by_status():
    summaries = summarise_probes([("200", 1.0), ("503", 5.0), ("200", 3.0)])
    assert summaries["200"] == {"n": 2, "p50_ms": 2.0, "p99_ms": pytest.approx(2.98)}
    assert summaries["503"]["n"] == 1


def test_a_spread_is_shown_where_there_is_one():
    assert format_summary(summarise([3.0, 1.0, 1200.0])) == "3 (1 to 1,200)"
    assert format_summary(summarise([2.25]), 1) == "2.2"


def test_the_model_that_is_measured_is_the_one_asked_for(tmp_path):
    bundles_dir = tmp_path / "bundles"
    release(bundles_dir, "cifar10")
    bundle, image = release(bundles_dir, "resnet18"), paint()
    contender = describe_contenders(["ours-fp32"], tmp_path, bundle, image, sys.executable, tmp_path)["ours-fp32"]
    with start(contender, tmp_path) as service:
        answer = httpx.post(service.address, content=image, headers={"Content-Type": contender.body.content_type})
        assert answer.json()["model"]["name"] == "resnet18"
        assert [status for status, _ in probe(service, 0.0)] == ["200"]


def test_a_name_without_a_release_is_one_line(tmp_path, monkeypatch, capsys):
    for name in ("shapes", "dogs"):
        release(tmp_path / "bundles", name)
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/wrk")
    monkeypatch.setattr(sys, "argv", ["serving", "--home", str(tmp_path), "--image", __file__])
    with pytest.raises(SystemExit):
        serving.main()
    assert "no release named cifar10; --name takes one of: dogs, shapes" in capsys.readouterr().err
