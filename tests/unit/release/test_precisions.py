import logging
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from model_code.evaluation.metrics import predict_logits
from model_code.release.certificate import certify
from model_code.release.onnx_export import export_onnx
from model_code.release.precisions import PRECISIONS, make_fp16, make_int8
from serving.bundle.session import CPU, CUDA, open_session, run_session
from tests.unit.release.trained_networks import SIDE, draw, train

MAKE_INT8 = """
import sys
from pathlib import Path
import numpy as np
from model_code.release.precisions import make_int8
make_int8(Path(sys.argv[1]), Path(sys.argv[2]), np.load(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def images():
    return draw(200, seed=7)


@pytest.fixture(scope="module")
def calibration():
    return draw(64, seed=8).images_NHWC.numpy()


@pytest.fixture(scope="module", params=["tiny", "swin", "fastnet"])
def exported(request, tmp_path_factory):
    """(model, file of its export, with a temperature)"""
    model, file = train(request.param), tmp_path_factory.mktemp("variants") / "model.onnx"
    export_onnx(model, SIDE, file, temperature=1.5)
    return model, file


def certify_variant(precision, exported, file, images):
    expected_NK = torch.softmax(predict_logits(exported[0], images.images_NHWC) / 1.5, dim=1).numpy()
    images_NHWC, labels_N = images.images_NHWC.numpy(), images.labels_N.numpy()
    return certify(precision, file, expected_NK, images_NHWC, labels_N, "test", CPU)


def count_operators(file):
    return [node.op_type for node in onnx.load(str(file)).graph.node]


MADE = [name for name, limits in PRECISIONS.items() if limits.make is not None]


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_every_precision_is_certified_and_answers_within_its_tolerance(name, exported, images, calibration, tmp_path):
    PRECISIONS[name].make(exported[1], tmp_path / "variant.onnx", calibration)
    certificate = certify_variant(name, exported, tmp_path / "variant.onnx", images)
    assert certificate.refusal is None
    assert certificate.max_difference > 0
    once, again = (open_session(tmp_path / "variant.onnx", CPU, threads=threads) for threads in (1, 2))
    difference = np.abs(run_session(once, calibration[:16]) - run_session(again, calibration[:16])).max()
    assert difference <= PRECISIONS[name].golden_tolerance


@pytest.mark.parametrize("name", PRECISIONS)
def test_every_precision_has_limits_and_a_provider(name):
    limits = PRECISIONS[name]
    assert set(limits.providers) & {CPU, CUDA}
    assert 0.9 < limits.top1_agreement <= 1
    assert 0 <= limits.accuracy_loss < 0.05
    assert 0 < limits.golden_tolerance < 0.1


def test_int8_keeps_the_labels(exported, images, calibration, tmp_path):
    make_int8(exported[1], tmp_path / "int8.onnx", calibration)
    certificate = certify_variant("int8", exported, tmp_path / "int8.onnx", images)
    assert certificate.refusal is None
    assert certificate.torch_accuracy > 0.9
    assert certificate.top1_agreement >= 0.99
    assert 0 < certificate.max_difference < 0.2
    operators = count_operators(tmp_path / "int8.onnx")
    assert operators.count("QuantizeLinear") > 0
    initializers = onnx.load(str(tmp_path / "int8.onnx")).graph.initializer
    sizes = {kind: sum(math.prod(one.dims) for one in initializers if one.data_type == kind) for kind in (1, 3)}
    assert sizes[onnx.TensorProto.INT8] > sizes[onnx.TensorProto.FLOAT]


def test_int8_weights_have_a_scale_per_channel(exported, calibration, tmp_path):
    make_int8(exported[1], tmp_path / "int8.onnx", calibration)
    graph = onnx.load(str(tmp_path / "int8.onnx")).graph
    weights = {weight.name: weight for weight in graph.initializer if weight.data_type == onnx.TensorProto.INT8}
    scales = {weight.name: weight for weight in graph.initializer}
    sizes = {
        node.input[0]: list(scales[node.input[1]].dims)
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        and len(weights.get(node.input[0], graph.initializer[0]).dims) > 1
        and node.input[0] in weights
    }
    assert sizes
    assert all(len(size) == 1 and size[0] > 1 for size in sizes.values())


def test_the_last_layer_and_the_probabilities_stay_in_float(exported, calibration, tmp_path):
    make_int8(exported[1], tmp_path / "int8.onnx", calibration)
    nodes = onnx.load(str(tmp_path / "int8.onnx")).graph.node
    made_by = {name: node.op_type for node in nodes for name in node.output}
    [last] = [node for node in nodes if node.op_type == "Gemm"]
    assert made_by[last.input[0]] in ("ReduceMean", "ReduceMax")
    assert last.input[1] not in made_by
    after = [node.op_type for node in nodes][list(nodes).index(last) :]
    assert after[-2:] == ["Div", "Softmax"]
    assert not {"QuantizeLinear", "DequantizeLinear"}.intersection(after)


@pytest.mark.parametrize("exported", ["tiny"], indirect=True)
def test_int8_calibrated_on_grey_noise_is_refused(exported, images, tmp_path):
    """Of a network without layer norm, which would bring any activation back into the range of the noise."""
    generator = np.random.default_rng(0)
    noise = generator.integers(127, 130, (64, SIDE, SIDE, 3)).astype(np.uint8)
    make_int8(exported[1], tmp_path / "int8.onnx", noise)
    refusal = certify_variant("int8", exported, tmp_path / "int8.onnx", images).refusal
    assert refusal is not None
    assert "of 200 labels agree (wanted 99%)" in refusal


def test_int8_writes_the_same_bytes_in_another_process(exported, calibration, tmp_path):
    """Whatever order Python gives its sets there, with nothing said but progress and nothing left in the folder."""
    make_int8(exported[1], tmp_path / "int8.onnx", calibration)
    np.save(tmp_path / "calibration.npy", calibration)
    (tmp_path / "empty").mkdir()
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[3])}
    files = [str(exported[1]), str(tmp_path / "again.onnx"), str(tmp_path / "calibration.npy")]
    done = subprocess.run(
        [sys.executable, "-c", MAKE_INT8, *files],
        cwd=tmp_path / "empty",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "int8.onnx").read_bytes()
    assert done.stdout == ""
    lines = r"(calibrating int8: \d+ of \d+ images in [\d.]+ s\n)*calibrating int8: \d+ images in [\d.]+ s\n"
    assert re.fullmatch(lines, done.stderr), done.stderr
    assert list((tmp_path / "empty").iterdir()) == []


def test_int8_is_made_without_advice_in_the_log(exported, calibration, tmp_path, caplog):
    make_int8(exported[1], tmp_path / "int8.onnx", calibration)
    assert caplog.records == []
    logging.getLogger().warning("heard again")
    assert [record.message for record in caplog.records] == ["heard again"]


def test_int8_needs_images(exported, tmp_path):
    with pytest.raises(ValueError, match="no images to calibrate with"):
        make_int8(exported[1], tmp_path / "int8.onnx", np.zeros((0, SIDE, SIDE, 3), dtype=np.uint8))


def test_fp16_answers_nearly_the_same(exported, images, tmp_path):
    make_fp16(exported[1], tmp_path / "fp16.onnx")
    certificate = certify_variant("fp16", exported, tmp_path / "fp16.onnx", images)
    assert certificate.refusal is None
    assert 0 < certificate.max_difference < 0.01
    session = open_session(tmp_path / "fp16.onnx", CPU, threads=1)
    assert session.get_inputs()[0].type == "tensor(uint8)"
    assert session.get_outputs()[0].type == "tensor(float)"
    onnx.checker.check_model(str(tmp_path / "fp16.onnx"), full_check=True)


def test_fp16_halves_every_weight_but_the_ends(exported, tmp_path):
    make_fp16(exported[1], tmp_path / "fp16.onnx")
    graph = onnx.load(str(tmp_path / "fp16.onnx")).graph
    kinds = [node.op_type for node in graph.node]
    between = graph.node[kinds.index("Conv") : kinds.index("Gemm")]
    floats = {weight.name for weight in graph.initializer if weight.data_type == onnx.TensorProto.FLOAT}
    assert not floats.intersection(name for node in between for name in node.input)
    assert any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in graph.initializer)
    casts = [node for node in graph.node if node.op_type == "Cast"]
    assert len(casts) == 3  # of the images, into float16, and out of it


def test_fp16_writes_the_same_bytes_again(exported, tmp_path):
    for name in ("once.onnx", "again.onnx"):
        make_fp16(exported[1], tmp_path / name)
    assert (tmp_path / "once.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
