"""The service's session on a real GPU: fixed buffers, recorded graphs, the same answers."""

import numpy as np
import pytest

from serving.bundle.session import CPU, CUDA, has_cuda, open_session, run_session
from serving.bundle.store import MODEL_FILE, read_bundle
from serving.models.classifier import Classifier
from tests.unit.serving.tiny_bundle import IMAGE_SIZE, make_bundle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_cuda(), reason="onnxruntime finds no CUDA device"),
]


@pytest.mark.parametrize("count", [1, 3, 64, 100])
def test_graphs_answer_like_the_cpu(tmp_path, count):
    folder = make_bundle(tmp_path)
    classifier = Classifier(folder, "1", requires_cuda=True)
    assert (classifier.provider, classifier.manifest) == (CUDA, read_bundle(folder))
    assert classifier._answer.__self__.has_graphs
    images_NHWC = np.random.default_rng(0).integers(0, 256, (count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    expected_NK = run_session(open_session(folder / MODEL_FILE, CPU, 1), images_NHWC)
    for _ in range(3):
        assert np.abs(classifier.classify(images_NHWC) - expected_NK).max() < 1e-4
