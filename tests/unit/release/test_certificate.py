import copy
import hashlib
import re

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch import nn

from model_code.errors import ReleaseError
from model_code.evaluation.metrics import predict_logits
from model_code.models.image_input import ImageInput
from model_code.release import certificate as certificate_file
from model_code.release.certificate import BATCH_SIZES, certify, check_certificate, find_providers
from model_code.release.onnx_export import OPSET, export_onnx
from model_code.tracking.provenance import read_versions
from serving.bundle.manifest import Certificate, Thresholds
from serving.bundle.session import CPU, CUDA
from tests.unit.release.trained_networks import SIDE, draw, train

COUNT = 300
CLASSES = ("ant", "bee", "cat", "dog")


@pytest.fixture(scope="module")
def images():
    return draw(COUNT, seed=7)


@pytest.fixture(scope="module")
def model():
    return train("tiny")


@pytest.fixture(scope="module")
def compare(tmp_path_factory, images):
    """Export one model, each once, and certify it against another."""
    files = {}

    def run(exported, trained, precision="fp32", classes=CLASSES):
        if exported not in files:
            files[exported] = tmp_path_factory.mktemp("export") / "model.onnx"
            export_onnx(exported, SIDE, files[exported])
        expected_NK = torch.softmax(predict_logits(trained, images.images_NHWC), dim=1).numpy()
        images_NHWC, labels_N = images.images_NHWC.numpy(), images.labels_N.numpy()
        return certify(precision, files[exported], expected_NK, images_NHWC, labels_N, "test", CPU, classes)

    run.files = files
    return run


def change(model, **tensors):
    """Return a copy of the model with other weights in its last layer."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in tensors.items():
            getattr(changed[1].fc, name).copy_(value)
    return changed


def reorder(model, order):
    return change(model, weight=model[1].fc.weight[order], bias=model[1].fc.bias[order])


class _Stub:
    """A session that answers what it is told, whatever it is asked."""

    def __init__(self, answers_NK):
        self.answers_NK, self.start = answers_NK, 0

    def get_providers(self):
        return [CPU]

    def run(self, _names, inputs, _options=None):
        count = len(next(iter(inputs.values())))
        start, self.start = self.start, (self.start + count) % len(self.answers_NK)
        return [self.answers_NK[start : start + count]]


@pytest.fixture
def judge(monkeypatch, compare, model):
    """Certify invented answers."""
    compare(model, model)
    file = compare.files[model]

    def run(precision, answered_NK, expected_NK, labels_N, thresholds=None, provider=CPU):
        monkeypatch.setattr(certificate_file, "open_session", lambda *_: _Stub(answered_NK))
        images_NHWC = np.zeros((len(labels_N), 1, 1, 3), dtype=np.uint8)
        return certify(precision, file, expected_NK, images_NHWC, labels_N, "test", provider, thresholds=thresholds)

    return run


def test_a_model_equals_its_own_export(compare, model, images):
    certificate = compare(model, model)
    check_certificate(certificate)
    assert certificate.refusal is None
    assert tuple(batch.batch_size for batch in certificate.batches) == BATCH_SIZES == (1, 7, 64, 256)
    for batch in certificate.batches:
        assert 0 <= batch.mean_difference <= batch.max_difference < 1e-5
        assert batch.top1_agreement == 1.0
    with torch.no_grad():
        right = int((model(images.images_NHWC).argmax(1) == images.labels_N).sum())
    assert certificate.torch_accuracy == certificate.accuracy == pytest.approx(right / COUNT)
    assert (certificate.split, certificate.count, certificate.provider) == ("test", COUNT, CPU)
    assert (certificate.precision, certificate.opset) == ("fp32", OPSET)
    assert certificate.versions == read_versions()
    assert certificate.sha256 == hashlib.sha256(compare.files[model].read_bytes()).hexdigest()
    low, high = certificate.torch_accuracy_interval
    assert high == pytest.approx(1.0 if right == COUNT else beta.ppf(0.975, right + 1, COUNT - right))
    assert low == pytest.approx(beta.ppf(0.025, right, COUNT - right + 1))
    assert certificate.agreement_interval == (pytest.approx(0.025 ** (1 / COUNT)), 1.0)


def test_the_record_is_plain_json(compare, model):
    certificate = compare(model, model)
    assert Certificate.model_validate_json(certificate.model_dump_json()) == certificate


@pytest.mark.slow
def test_another_normalisation_is_refused_and_named(compare, model):
    shifted = nn.Sequential(ImageInput((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), model[1])
    certificate = compare(shifted, model)
    assert certificate.max_difference > 1e-3
    with pytest.raises(
        ReleaseError,
        match=r"not the trained one: on CPUExecutionProvider at batch 1 probabilities differ by up to .*"
        r"\(allowed 0\.0001\).*: \d+% of the images are answered otherwise, so its normalisation or its weights "
        r"differ; nothing was released$",
    ):
        check_certificate(certificate)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_swapped_classes_are_refused_and_named(compare, model, precision):
    certificate = compare(reorder(model, [0, 2, 1, 3]), model, precision)
    assert certificate.top1_agreement < 0.7
    assert [batch.batch_size for batch in certificate.batches] == [1]  # what is refused is not measured any further
    with pytest.raises(
        ReleaseError, match="its classes are in another order, the answers for bee stand where cat belongs; nothing"
    ):
        check_certificate(certificate)


@pytest.mark.slow
def test_classes_in_a_circle_are_named_by_number_without_names(compare, model):
    # Output 0 answers class 3, so the answers for class 0 are at output 1.
    certificate = compare(reorder(model, [3, 0, 1, 2]), model, classes=None)
    assert certificate.refusal.endswith("in another order, the answers for 0 stand where 1 belongs")


@pytest.mark.slow
def test_another_training_is_no_other_order(compare, model):
    other = change(model, weight=-model[1].fc.weight, bias=-model[1].fc.bias)
    assert compare(other, model).refusal.endswith("so its normalisation or its weights differ")
    assert compare(other, model, "int8").refusal.endswith(
        "int8 is too coarse for this network, or its normalisation, weights or calibration images differ"
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(
    ("is_broken", "whose"),
    [((True, False), "its"), ((False, True), "the trained network's"), ((True, True), "the trained network's")],
)
def test_nan_is_refused_and_named(compare, model, broken, precision, is_broken, whose):
    certificate = compare(*(broken if broken_one else model for broken_one in is_broken), precision)
    assert certificate.max_difference == 1.0
    assert certificate.top1_agreement == 0.0
    assert Certificate.model_validate_json(certificate.model_dump_json()) == certificate
    with pytest.raises(ReleaseError, match=f"at batch 1 {whose} answers to 300 of 300 images are NaN, no numbers"):
        check_certificate(certificate)


@pytest.fixture(scope="module")
def broken(model):
    return change(model, bias=torch.full((4,), torch.nan))


@pytest.mark.slow
def test_one_other_label_is_refused_however_small_the_difference(compare, model, images):
    with torch.no_grad():
        logits_K = model(images.images_NHWC[:1])[0]
    first, second = logits_K.topk(2).indices.tolist()
    gap = torch.zeros(4)
    gap[second] = float(logits_K[first] - logits_K[second])
    before = change(model, bias=model[1].fc.bias + gap - 2e-5 * (gap > 0))
    after = change(model, bias=model[1].fc.bias + gap + 2e-5 * (gap > 0))
    certificate = compare(after, before)
    assert certificate.max_difference < 1e-4
    assert certificate.top1_agreement == pytest.approx((COUNT - 1) / COUNT)
    with pytest.raises(ReleaseError, match=r"at batch 1 299 of 300 labels agree \(wanted 100%\)"):
        check_certificate(certificate)


def make_answers(count, differing=0, wrong=0):
    """Sure answers to `count` images; some labels differ from the trained network's, some of its own are wrong.

    Those that differ are wrong where the trained network is right.
    """
    expected_NK = np.tile(np.array([0.9, 0.1], dtype=np.float32), (count, 1))
    answered_NK = expected_NK.copy()
    answered_NK[:differing] = [0.1, 0.9]
    labels_N = np.zeros(count, dtype=np.int64)
    labels_N[count - wrong :] = 1
    return answered_NK, expected_NK, labels_N


def test_int8_may_change_one_label_in_a_hundred_and_lose_half_a_point(judge):
    answered_NK, expected_NK, labels_N = make_answers(1000, differing=10)
    labels_N[:5] = 1  # half of the changed labels are right now: the accuracy stays
    assert judge("int8", answered_NK, expected_NK, labels_N).refusal is None
    assert judge("int8", *make_answers(1000, differing=5)).refusal is None
    assert judge("int8", *make_answers(1000, differing=6)).refusal == (
        "at batch 1 accuracy is 0.9940 and the trained network's 1.0000 (allowed 0.5 points less)"
    )
    refusal = judge("int8", *make_answers(1000, differing=11)).refusal
    assert refusal.startswith("at batch 1 989 of 1000 labels agree (wanted 99%) and accuracy is 0.9890")


def test_better_labels_are_no_loss(judge):
    answered_NK, expected_NK, labels_N = make_answers(1000, differing=10)
    labels_N[:10] = 1
    certificate = judge("int8", answered_NK, expected_NK, labels_N)
    assert certificate.refusal is None
    assert certificate.accuracy == 1.0
    assert certificate.torch_accuracy == 0.99


def test_fp16_may_change_one_label_in_a_thousand(judge):
    def answer_nearly(differing):
        answered_NK, expected_NK, labels_N = make_answers(2000)
        expected_NK[:differing] = [0.501, 0.499]
        answered_NK[:differing] = [0.499, 0.501]
        return answered_NK, expected_NK, labels_N

    assert judge("fp16", *answer_nearly(2)).refusal is None
    assert "of 2000 labels agree (wanted 99.9%)" in judge("fp16", *answer_nearly(3)).refusal
    answered_NK, expected_NK, labels_N = make_answers(2000)
    answered_NK[7] = [0.84, 0.16]
    assert judge("fp16", answered_NK, expected_NK, labels_N).refusal == (
        "at batch 1 probabilities differ by up to 0.06 (allowed 0.05)"
    )


@pytest.mark.parametrize(
    ("precision", "sure", "trained_sure", "refusal"),
    [
        ("int8", 0.6, 0.6, None),
        ("int8", 0.9, 0.6, "80 of its 1000 accepted predictions are wrong (allowed 5%)"),
        ("fp16", 0.605, 0.6, None),
        ("fp32", 0.6, 0.6, None),
        ("fp32", 0.9, 0.9, None),
    ],
)
def test_a_variant_that_breaks_the_promise_of_the_thresholds_is_refused(judge, precision, sure, trained_sure, refusal):
    """Every label is that of the trained network; how sure the variant is of the wrong ones may differ, but in fp32."""
    predicted_N, is_wrong_N = np.arange(1000) % 2, np.arange(1000) < 80
    labels_N = np.where(is_wrong_N, 1 - predicted_N, predicted_N)

    def answer(sure_when_wrong):
        sure_N = np.where(is_wrong_N, sure_when_wrong, 0.9)
        return np.where(np.arange(2) == predicted_N[:, None], sure_N[:, None], 1 - sure_N[:, None]).astype(np.float32)

    thresholds = Thresholds(target_error=0.05, overall=0.8, per_class=(0.8, 0.8), selections=())
    certificate = judge(precision, answer(sure), answer(trained_sure), labels_N, thresholds)
    assert certificate.refusal == refusal
    accepted, wrong = (920, 0) if sure < 0.8 else (1000, 80)
    assert (certificate.selection.answered, certificate.selection.wrong) == (accepted, wrong)


@pytest.mark.parametrize(("difference", "is_allowed"), [(0.99e-4, True), (1.01e-4, False)])
def test_fp32_may_differ_by_a_ten_thousandth(judge, difference, is_allowed):
    answered_NK, expected_NK, labels_N = make_answers(100)
    answered_NK[50] += np.array([-difference, difference], dtype=np.float32)
    assert (judge("fp32", answered_NK, expected_NK, labels_N).refusal is None) == is_allowed


def test_one_batch_size_is_enough_to_refuse(monkeypatch, compare, model):
    ask = certificate_file._ask

    def spoil(session, images_NHWC, batch_size, progress):
        return ask(session, images_NHWC, batch_size, progress) + (1e-3 if batch_size == 64 else 0)

    monkeypatch.setattr(certificate_file, "_ask", spoil)
    certificate = compare(model, model)
    assert certificate.refusal.startswith("at batch 64 probabilities differ by up to 0.001")
    assert certificate.max_difference == pytest.approx(1e-3, rel=0.01)


def test_images_answers_and_labels_must_be_equally_many(compare, model, images):
    compare(model, model)
    images_NHWC, labels_N = images.images_NHWC.numpy(), images.labels_N.numpy()
    with pytest.raises(ValueError, match="300 images, 2 answers and 300 labels"):
        certify("fp32", compare.files[model], np.ones((2, 4), np.float32), images_NHWC, labels_N, "test", CPU)


def test_the_cpu_is_always_there_and_cuda_only_where_a_session_runs_on_it(monkeypatch):
    assert find_providers()[0] == CPU
    monkeypatch.setattr(certificate_file, "has_cuda", lambda: False)
    assert find_providers() == (CPU,)
    monkeypatch.setattr(certificate_file, "has_cuda", lambda: True)
    assert find_providers() == (CPU,), "there is no CUDA on this machine, whatever its driver says"
    monkeypatch.setattr(certificate_file, "open_session", lambda *_, **__: _Stub(np.zeros((1, 1))))
    assert find_providers() == (CPU, CUDA)


def answer(*firsts):
    """Return probabilities of two classes: those given of the first, the rest of the second."""
    return np.array([[first, 1 - first] for first in firsts], dtype=np.float32)


@pytest.mark.parametrize(
    ("provider", "expected", "answered", "refusal"),
    [
        # The trained network holds both classes for equal, up to what rounding on CUDA may move.
        (CUDA, 0.50004, 0.49999, None),
        (CPU, 0.50004, 0.49999, r"at batch 1 2 of 3 labels agree"),
        (CUDA, 0.7, 0.70005, None),
        (CUDA, 0.7, 0.7002, r"differ by up to 0\.0002 \(allowed 0\.0001\)$"),
        (CUDA, 0.5011, 0.4989, r"differ by up to 0\.0022 .* and 2 of 3 labels agree .* and accuracy"),
    ],
)
def test_on_cuda_fp32_may_exchange_classes_that_are_equal(judge, provider, expected, answered, refusal):
    expected_NK, answered_NK = answer(0.9, 0.1, expected), answer(0.9, 0.1, answered)
    certificate = judge("fp32", answered_NK, expected_NK, np.array([0, 1, 0]), provider=provider)
    if refusal is None:
        assert certificate.refusal is None
    else:
        assert re.search(refusal, certificate.refusal), certificate.refusal
