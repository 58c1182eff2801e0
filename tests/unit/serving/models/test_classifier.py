from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving.bundle.processors import count_cpus
from serving.bundle.session import CPU, CUDA
from serving.bundle.store import MODEL_FILE, hash_file
from serving.errors import BundleError, NotAnImageError
from serving.models.classifier import Classifier
from serving.models.predictions import rank_classes
from tests.unit.serving.tiny_bundle import COLOURS, IMAGE_SIZE, make_bundle, make_two_variants, paint, write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def classifier(folder):
    return Classifier(folder, "7")


def test_a_batch_is_answered_in_order(classifier):
    images_NHWC = np.stack([classifier.decode(paint(colour)) for colour in COLOURS])
    probabilities_NK = classifier.classify(images_NHWC)
    assert probabilities_NK.dtype == np.float32
    assert probabilities_NK.argmax(axis=1).tolist() == list(range(len(COLOURS)))
    assert probabilities_NK.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_probabilities_are_the_softmax_of_the_graph(classifier):
    colours_KC = np.array(list(COLOURS.values()), dtype=np.float64)
    logits_K = (2 * colours_KC @ (120, 60, 30) - (colours_KC**2).sum(axis=1)) / 4000
    expected_K = np.exp(logits_K - logits_K.max())
    expected_K /= expected_K.sum()
    image_NHWC = np.full((1, IMAGE_SIZE, IMAGE_SIZE, 3), (120, 60, 30), dtype=np.uint8)
    assert classifier.classify(image_NHWC)[0] == pytest.approx(expected_K, abs=1e-5)


def test_who_answers_is_described(classifier, folder):
    assert classifier.identity.model_dump() == {
        "name": "cifar10",
        "version": "7",
        "sha256": hash_file(folder / MODEL_FILE),
        "precision": "fp32",
    }
    described = classifier.describe()
    assert described.classes == tuple(COLOURS)
    assert described.provider == classifier.provider
    assert classifier.provider in (CPU, CUDA)


def test_several_threads_get_the_same_answers(classifier):
    images_NHWC = np.random.default_rng(0).integers(0, 256, (64, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    expected_NK = classifier.classify(images_NHWC)
    with ThreadPoolExecutor(4) as pool:
        for probabilities_NK in pool.map(classifier.classify, [images_NHWC] * 20):
            assert np.array_equal(probabilities_NK, expected_NK)


@pytest.mark.parametrize(
    "images_NHWC",
    [np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.float32), np.zeros((1, 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)],
)
def test_other_shapes_and_types_are_refused(classifier, images_NHWC):
    with pytest.raises(ValueError, match="reads uint8"):
        classifier.classify(images_NHWC)


def test_garbage_is_refused(classifier):
    with pytest.raises(NotAnImageError):
        classifier.decode(b"garbage")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_name": "x"}, "the service needs uint8"),
        ({"output_name": "logits_out"}, "the service needs uint8"),
        ({"batch": 2}, "any batch size"),
        ({"image_size": 9}, "its manifest says"),
        ({"softmax": False}, "softmax belongs inside the graph"),
        ({"manifest": {"classes": ("red", "green")}}, "names 2 classes"),
    ],
)
def test_a_graph_that_does_not_fit_its_manifest_is_refused(tmp_path, options, message):
    with pytest.raises(BundleError, match=message):
        Classifier(make_bundle(tmp_path, **options), "1")


def test_a_file_that_is_no_graph_is_refused(tmp_path):
    folder = make_bundle(tmp_path)
    (folder / MODEL_FILE).write_bytes(b"no graph")
    manifest = (folder / "manifest.json").read_text()
    write_model(tmp_path / "good.onnx")
    changed = manifest.replace(hash_file(tmp_path / "good.onnx"), hash_file(folder / MODEL_FILE))
    assert changed != manifest
    (folder / "manifest.json").write_text(changed)
    with pytest.raises(BundleError, match="cannot run it"):
        Classifier(folder, "1")


def test_equal_classes_keep_their_order(classifier):
    manifest = classifier.manifest
    prediction = rank_classes(np.array([0.2, 0.4, 0.4, 0, 0, 0], dtype=np.float32), manifest, 2, "x.png")
    assert [one.label for one in prediction.top] == ["green", "blue"]
    assert (prediction.label, prediction.filename, prediction.is_confident) == ("green", "x.png", True)


@pytest.mark.parametrize(("text", "limit"), [("50000 100000", 1), ("100000 100000", 1), ("max 100000", None)])
def test_a_containers_cpu_quota_is_respected(tmp_path, text, limit):
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    unlimited = count_cpus(tmp_path / "no such file")
    assert count_cpus(quota) == (limit or unlimited)


@pytest.mark.parametrize("fastest", ["fp32", "int8"])
def test_the_fastest_certified_variant_answers_and_says_so(tmp_path, fastest):
    """The other one does much more for the same answer."""
    slow = "fp32_repeats" if fastest == "int8" else "repeats"
    classifier = Classifier(make_two_variants(tmp_path, **{slow: 2000}), "1", 1)
    assert classifier.choice.startswith(f"{classifier.identity.precision}: fastest here at 8 images (images/s: fp32 ")
    assert classifier.identity.precision == fastest
    file = classifier.variant.file
    assert classifier.identity.sha256 == classifier.manifest.files[file]


def test_a_variant_can_be_asked_for(tmp_path):
    folder = make_two_variants(tmp_path)
    for precision in ("fp32", "int8"):
        classifier = Classifier(folder, "1", 1, precision=precision)
        assert (classifier.identity.precision, classifier.choice) == (precision, f"{precision}: asked for")
    with pytest.raises(BundleError, match=r"offers no fp16 on CPUExecutionProvider, only fp32, int8"):
        Classifier(folder, "1", 1, precision="fp16")


def test_a_variant_that_was_refused_never_answers(tmp_path):
    folder = make_two_variants(tmp_path, refusal="its labels differ")
    assert (
        Classifier(folder, "1", 1).choice
        == "fp32: the only variant that is offered for CPUExecutionProvider and works here"
    )
    with pytest.raises(BundleError, match="offers no int8"):
        Classifier(folder, "1", 1, precision="int8")


def test_a_variant_that_answers_otherwise_here_than_at_its_release_is_left_out(tmp_path):
    folder = make_two_variants(tmp_path, golden_error=0.1)
    classifier = Classifier(folder, "1", 1)
    assert classifier.identity.precision == "fp32"
    assert "model.int8.onnx: on this machine 4 golden images are answered otherwise" in classifier.choice
    assert "by up to 0.1 (allowed 0.05)" in classifier.choice
    with pytest.raises(BundleError, match="golden images are answered otherwise"):
        Classifier(folder, "1", 1, precision="int8")


def test_the_manifest_says_how_far_golden_answers_may_be(tmp_path):
    folder = make_two_variants(tmp_path, golden_error=0.04, golden_tolerance=0.03)
    assert "by up to 0.04 (allowed 0.03)" in Classifier(folder, "1", 1).choice
    assert Classifier(make_two_variants(tmp_path / "wide", golden_error=0.2, golden_tolerance=0.3), "1", 1)


def test_a_label_below_its_class_threshold_is_not_confident(tmp_path):
    per_class = (0.5, 0.9, None, 0.0, 0.0, 0.0)
    thresholds = {"target_error": 0.05, "overall": 0.5, "per_class": per_class}
    thresholds |= {"selections": (), "selections_overall": ()}
    calibration = {"temperature": 1.5, "reliability": (), "thresholds": thresholds}
    classifier = Classifier(make_bundle(tmp_path, manifest={"calibration": calibration}), "1")
    described = classifier.describe()
    assert described.target_error == 0.05
    # Class 2 has no threshold: none of its labels is confident, and it is left out.
    assert described.thresholds == {"red": 0.5, "green": 0.9, "yellow": 0.0, "black": 0.0, "white": 0.0}
    for probabilities_K, is_confident in (
        ([0.5, 0.3, 0.2, 0, 0, 0], True),
        ([0.49, 0.31, 0.2, 0, 0, 0], False),
        ([0.2, 0.8, 0, 0, 0, 0], False),
        ([0, 0, 1, 0, 0, 0], False),
        ([0, 0, 0, 1, 0, 0], True),
    ):
        answer = rank_classes(np.array(probabilities_K, dtype=np.float32), classifier.manifest, 1, None)
        assert answer.is_confident is is_confident


def test_without_a_working_fp32_no_other_variant_is_trusted(tmp_path):
    with pytest.raises(BundleError, match=r"model\.onnx: on this machine 4 golden images are answered otherwise"):
        Classifier(make_two_variants(tmp_path, fp32_golden_error=0.1), "1", 1)
