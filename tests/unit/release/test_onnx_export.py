import logging

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from model_code.release.onnx_export import OPSET, export_onnx
from model_code.training.checkpoints import save_weights
from model_code.training.supervised import build_model, load_model
from serving.bundle.session import INPUT_NAME, OUTPUT_NAME
from tests.unit.training.small_runs import draw_images, make_config

CLASSES = 10


def make_model(network="resnet18_improved", side=32):
    """A network whose batch statistics are those of images, so that it answers each image differently."""
    torch.manual_seed(0)
    model = build_model(make_config(network=network), CLASSES, 32)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        model(draw_images(16, seed=5, classes=CLASSES, side=side).images_NHWC)
        model[1].fc.weight.mul_(5)
    return model.eval()


def ask_torch(model, images):
    with torch.no_grad():
        return torch.softmax(model(images), dim=1).numpy()


def start(file):
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def ask_onnx(session, images):
    [answer] = session.run([OUTPUT_NAME], {INPUT_NAME: images.numpy()})
    return answer


@pytest.fixture(scope="module")
def images():
    return draw_images(64, classes=CLASSES, side=32).images_NHWC


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(model, file of its export)"""
    model, file = make_model(), tmp_path_factory.mktemp("export") / "model.onnx"
    export_onnx(model, 32, file)
    yield model, file
    file.unlink()


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_answers_are_those_of_torch(exported, images, batch_size):
    model, file = exported
    session = start(file)
    expected = ask_torch(model, images)
    answers = np.concatenate([ask_onnx(session, batch) for batch in images.split(batch_size)])
    assert answers.shape == (64, CLASSES)
    assert answers.dtype == np.float32
    assert np.abs(answers - expected).max() < 1e-5
    assert np.array_equal(answers.argmax(1), expected.argmax(1))
    assert np.abs(answers.sum(axis=1) - 1).max() < 1e-5
    assert answers.std(axis=0).max() > 0.01


def test_the_graph_reads_uint8_images_and_answers_probabilities(exported):
    _, file = exported
    session = start(file)
    [images], [probabilities] = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["batch", 32, 32, 3])
    assert (probabilities.name, probabilities.type) == ("probabilities", "tensor(float)")
    assert probabilities.shape == ["batch", CLASSES]


def test_the_file_is_whole_and_valid(exported):
    _, file = exported
    onnx.checker.check_model(str(file), full_check=True)
    model = onnx.load(str(file))
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [OPSET]
    assert all(not weight.external_data for weight in model.graph.initializer)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_black_and_white_are_answered_like_torch(exported):
    model, file = exported
    extremes = torch.stack([torch.full((32, 32, 3), value, dtype=torch.uint8) for value in (0, 1, 254, 255)])
    assert np.abs(ask_onnx(start(file), extremes) - ask_torch(model, extremes)).max() < 1e-5


def test_float_images_are_refused(exported, images):
    _, file = exported
    with pytest.raises(Exception, match="Unexpected input data type"):
        ask_onnx(start(file), images.float())


@pytest.mark.slow
def test_exporting_twice_gives_the_same_bytes(exported, tmp_path):
    model, file = exported
    again = tmp_path / "again.onnx"
    export_onnx(model, 32, again)
    is_equal = again.read_bytes() == file.read_bytes()
    again.unlink()
    assert is_equal


def test_a_model_in_training_mode_is_exported_for_evaluation(tmp_path):
    images = draw_images(5, side=12).images_NHWC
    model, file = make_model("tiny", side=12), tmp_path / "model.onnx"
    file.write_bytes(b"the export before")
    expected = ask_torch(model, images)
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        export_onnx(model.train(), 12, file)
        level_after = logger.level
    finally:
        logger.setLevel(before)
    session = start(file)
    assert session.get_inputs()[0].shape == ["batch", 12, 12, 3]
    assert np.abs(ask_onnx(session, images) - expected).max() < 1e-5
    assert level_after == logging.DEBUG


@pytest.mark.slow
def test_what_is_served_sees_the_middle_twice_as_the_test_did(tmp_path, images):
    """A recipe's smaller image size and flip averaging are part of the graph, which reads images as packed."""
    config = make_config(network="resnet18", image_size=24, has_flip_averaging=True)
    torch.manual_seed(0)
    trained = build_model(config, CLASSES, 32)
    save_weights(trained[1].state_dict(), tmp_path / "weights.safetensors")
    model = load_model(config, CLASSES, 32, tmp_path / "weights.safetensors")
    export_onnx(model, 32, tmp_path / "model.onnx")
    answers = ask_onnx(start(tmp_path / "model.onnx"), images)
    assert np.abs(answers - ask_torch(model, images)).max() < 1e-5

    middle, network = images[:, 4:28, 4:28], trained.eval()
    by_hand = (ask_torch(network, middle) + ask_torch(network, middle.flip(2))) / 2
    assert np.abs(answers - by_hand).max() < 1e-5
    assert np.abs(answers - ask_torch(network, middle)).max() > 1e-4
    bordered = images.clone()
    bordered[:, :4] = bordered[:, 28:] = bordered[:, :, :4] = bordered[:, :, 28:] = 0
    assert np.abs(answers - ask_onnx(start(tmp_path / "model.onnx"), bordered)).max() == 0


@pytest.mark.slow
def test_the_temperature_is_inside_the_graph(exported, images, tmp_path):
    model, file = exported
    export_onnx(model, 32, tmp_path / "warm.onnx", temperature=2.5)
    with torch.no_grad():
        expected = torch.softmax(model(images) / 2.5, dim=1).numpy()
    answers = ask_onnx(start(tmp_path / "warm.onnx"), images)
    assert np.abs(answers - expected).max() < 1e-5
    assert np.abs(answers - ask_onnx(start(file), images)).max() > 0.01
    nodes, more = (onnx.load(str(path)).graph.node for path in (file, tmp_path / "warm.onnx"))
    assert len(more) == len(nodes) + 1


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_divides_nothing_is_refused(tmp_path, temperature):
    with pytest.raises(ValueError, match="a number above 0 is allowed"):
        export_onnx(make_model("tiny", side=12), 12, tmp_path / "model.onnx", temperature)
