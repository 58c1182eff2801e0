"""A canary that answers requests of the real service."""

import base64
import json

import pytest

from serving.bundle.store import ChallengerReference, hash_file, write_challenger
from tests.contract.test_http import wait_for
from tests.contract.test_review import KEEPING, connect, hash_of, paint_red, review
from tests.unit.serving.tiny_bundle import make_bundle, release

IMAGE = {"Content-Type": "image/png"}


@pytest.fixture
def begin(tmp_path):
    release(tmp_path / "bundles")
    folder = make_bundle(tmp_path / "bundles", softness=9000.0)
    fields = {"version": "2", "bundle": folder.name, "manifest_sha256": hash_file(folder / "manifest.json")}

    def begin(share):
        write_challenger(tmp_path / "bundles", "cifar10", ChallengerReference(**fields, share=share))

    return begin


def test_a_canary_answers_where_no_version_is_asked_for(tmp_path, start_service, begin):
    begin(1.0)
    images = [paint_red(red) for red in range(100, 124)]
    with connect(start_service(tmp_path, *KEEPING, "--review")) as client:

        def ask(data):
            answer = client.post("/v1/predict", content=data, headers=IMAGE)
            assert answer.status_code == 200, answer.text
            return answer.json()["model"]["version"]

        def infer(path, data):
            tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(data).decode()]}
            answer = client.post(f"/v2/models/cifar10{path}/infer", json={"inputs": [tensor]})
            return answer.json().get("model_version"), answer.status_code

        assert {ask(data) for data in images} == {"2"}
        assert infer("", images[0]) == ("2", 200)
        assert infer("/versions/1", images[0]) == ("1", 200), "asked for by its version"
        (model,) = client.get("/v1/models").json()["models"]
        assert (model["version"], model["challenger"]["version"], model["challenger"]["share"]) == ("1", "2", 1)
        metrics = client.get("/metrics").text
        assert 'darkroom_model_info{name="cifar10",precision="fp32",provider="CPUExecutionProvider"' in metrics
        counted = [line for line in metrics.splitlines() if line.startswith("darkroom_predictions_total")]
        assert {'version="1"' in line for line in counted} == {True, False}

        def read_log():
            files = tmp_path.glob("requests/*.jsonl")
            return [json.loads(line) for file in files for line in file.read_text().splitlines()]

        wait_for(lambda: len(read_log()) == len(images) + 2)
        assert [one["version"] for one in read_log()] == ["2"] * (len(images) + 1) + ["1"]
        assert len({one["request"] for one in read_log()}) == len(images) + 2
        assert [one["is_drawn"] for one in read_log()] == [True] * (len(images) + 1) + [False]

        found, after = [], None
        while after is not None or not found:
            answer = review(client, after)
            found += [one["picture_sha256"] for one in answer["entries"]]
            after = answer["next"]
        assert found == sorted(map(hash_of, images)), "by hash, whoever was how sure"

        in_the_middle = review(client)["next"]
        begin(0.0)
        wait_for(lambda: ask(images[0]) == "1")
        first = review(client)["entries"]
        assert review(client, in_the_middle)["entries"] == first, "the order has changed: from the beginning"
        assert [one["probability"] for one in first] == sorted(one["probability"] for one in first)
        assert [one["picture_sha256"] for one in first] != sorted(one["picture_sha256"] for one in first)
