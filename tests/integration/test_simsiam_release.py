"""A SimSiam run, released with each of its heads: registered, champion, asked over HTTP."""

import io
import os
import subprocess
import sys

import httpx
import numpy as np
from PIL import Image

from serving.bundle.store import read_champion
from serving.models.classifier import Classifier
from tests.integration.conftest import COMMAND

TRAIN = ("train", "simsiam_cifar10", "--profile", "smoke", "--limit-train", "200", "--set", "dataset=shapes")
SMALL = ("--set", "network=resnet18", "--set", "batch_size=40", "--set", "knn_neighbours=20")
RELEASE = ("release", "simsiam_cifar10", "--as", "shapes")


def test_a_backbone_answers_over_http_by_its_nearest_images_and_by_a_linear_layer(tmp_path):
    kept = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")}
    environment = kept | {"DARKROOM_HOME": str(tmp_path)}

    def run(*arguments):
        done = subprocess.run([COMMAND, *arguments], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("data", "add", "shapes")
    run(*TRAIN, *SMALL)
    for version, head in enumerate(("knn", "linear"), start=1):
        released = run(*RELEASE, "--head", head, "--mode", "forced", "--why", "each head answers")
        assert f"version {version} is champion" in released
        assert f"version {version} is champion already" in run(*RELEASE, "--head", head)
        assert (tmp_path / "bundles" / "shapes" / "ledger.jsonl").read_text().count("\n") == version
        check_answers(environment, tmp_path / "bundles", head)


def check_answers(environment, bundles_dir, head):
    pointer, folder, manifest = read_champion(bundles_dir, "shapes")
    assert (manifest.recipe, manifest.settings["head"]) == ("simsiam_cifar10", head)
    images_NHWC = np.load(folder / "golden.npz")["images_NHWC"]
    labels = [manifest.classes[index] for index in Classifier(folder, pointer.version).classify(images_NHWC).argmax(1)]
    command = [sys.executable, "-m", "serving.launcher", "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as service:
        address = next(line for line in service.stdout if line.startswith("Darkroom serves at")).split()[3]
        with httpx.Client(base_url=address, trust_env=False, headers={"Content-Type": "image/png"}) as client:
            answers = [client.post("/v1/predict", content=as_png(image_HWC)).json() for image_HWC in images_NHWC]
        service.terminate()
    assert [answer["predictions"][0]["label"] for answer in answers] == labels


def as_png(image_HWC) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG")
    return buffer.getvalue()
