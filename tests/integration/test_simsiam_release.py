"""A SimSiam run, released with each of its heads: registered, champion, asked over HTTP."""

import io
import subprocess
import sys

import httpx
import numpy as np
import pytest
from PIL import Image

from serving.bundle.store import read_champion
from serving.models.classifier import Classifier
from tests.integration.conftest import home_entered, make_environment

TRAIN = ("train", "simsiam_cifar10", "--profile", "smoke", "--limit-train", "200", "--set", "dataset=shapes")
SMALL = ("--set", "network=resnet18", "--set", "batch_size=40", "--set", "knn_neighbours=20")
RELEASE = ("release", "simsiam_cifar10", "--as", "shapes")


@pytest.mark.usefixtures("few_shapes")
def test_a_backbone_answers_over_http_by_its_nearest_images_and_by_a_linear_layer(darkroom, tmp_path):
    def run(*arguments):
        done = darkroom(*arguments)
        assert done.status == 0, done.err
        return done.out

    with home_entered(tmp_path):
        run("data", "add", "shapes")
        run(*TRAIN, *SMALL)
        for version, head in enumerate(("knn", "linear"), start=1):
            released = run(*RELEASE, "--head", head, "--mode", "forced", "--why", "each head answers")
            assert f"version {version} is champion" in released
            assert f"version {version} is champion already" in run(*RELEASE, "--head", head)
            assert (tmp_path / "bundles" / "shapes" / "ledger.jsonl").read_text().count("\n") == version
            check_answers(tmp_path / "bundles", head)


def check_answers(bundles_dir, head):
    pointer, folder, manifest = read_champion(bundles_dir, "shapes")
    assert (manifest.recipe, manifest.settings["head"]) == ("simsiam_cifar10", head)
    images_NHWC = np.load(folder / "golden.npz")["images_NHWC"]
    labels = [manifest.classes[index] for index in Classifier(folder, pointer.version).classify(images_NHWC).argmax(1)]
    command = [sys.executable, "-m", "serving.launcher", "--port", "0"]
    with subprocess.Popen(command, env=make_environment(), stdout=subprocess.PIPE, text=True) as service:
        address = next(line for line in service.stdout if line.startswith("Darkroom serves at")).split()[3]
        with httpx.Client(base_url=address, trust_env=False, headers={"Content-Type": "image/png"}) as client:
            answers = [client.post("/v1/predict", content=as_png(image_HWC)).json() for image_HWC in images_NHWC]
        service.terminate()
    assert [answer["predictions"][0]["label"] for answer in answers] == labels


def as_png(image_HWC) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG")
    return buffer.getvalue()
