"""Figures by version, in a process of their own: BentoML's metrics are the process's."""

import re
import subprocess
import sys

from serving.limits import MAX_GONE_VERSIONS

CODE = """
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.server.metrics.prometheus import PrometheusClient
from serving.models.predictions import ModelIdentity, ModelsAnswer, PredictAnswer, Prediction, ServedModel
from serving.observation.metrics import count_answer, publish_models

BentoMLContainer.metrics_client.set(PrometheusClient(multiproc=False))

def name(version):
    return dict(name="cifar10", version=str(version), sha256="a" * 64, precision="fp32")

def publish(version):
    more = dict(choice="fp32", target_error=None, classes=("cat",), image_size=8, accuracy_fraction=None)
    model = ServedModel(**name(version), provider="CPU", recipe="r", run_id="r", created="t", **more)
    publish_models(ModelsAnswer(models=(model,), problems=()))

def answer(version):
    one = Prediction(filename=None, label="cat", probability=0.9, is_confident=True, top=())
    count_answer(PredictAnswer(model=ModelIdentity(**name(version)), provider="CPU", predictions=(one,)))

for version in range(60):
    publish(version)
    answer(version)
    if version > 20:
        answer(version - 20)
publish(60)
print(BentoMLContainer.metrics_client.get().generate_latest().decode())
"""


def test_versions_that_answer_after_they_were_forgotten_do_not_pile_up():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], capture_output=True, text=True, check=True)
    versions = re.findall(r'darkroom_predictions_total\{.*?version="(\d+)"', done.stdout)
    assert len(set(versions)) <= MAX_GONE_VERSIONS
    assert "59" in versions
