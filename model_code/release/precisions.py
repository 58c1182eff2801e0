"""The precisions of a release: how each is made, where it runs, and how far it may be from the trained network.

int8 is for the CPU, fp16 for CUDA. Both keep their ends in float32: what scales and normalises the images, the last
layer, and what makes probabilities of its logits.

Shape suffixes: N = images, H = height, W = width, C = the three colour channels.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from model_code.data.progress import show_progress
from serving.bundle.session import CPU, CUDA, INPUT_NAME

CALIBRATION_COUNT = 512
_CALIBRATION_BATCH = 32
_WEIGHTED = ("Conv", "Gemm", "MatMul")
# Integer kernels that pass integers on: with one of them in float, its neighbours convert to float and back.
_CONVOLUTIONAL = ["Add", "Conv", "GlobalAveragePool", "MaxPool", "Relu"]
# The layers with weights alone: what lies between them is small and loses more by rounding than it gains in speed.
_ATTENTION = ["MatMul", "Gemm"]


def make_int8(model_file: Path, file: Path, calibration_NHWC: npt.NDArray[np.uint8]) -> None:
    """Write a model with int8 weights, one scale per output channel, and uint8 activations (static, QDQ).

    The range of each activation is that of the calibration images. In a network without attention, all from the
    first convolution to the layer before the last is in integers; in one with attention, the layers with weights are,
    and answer in float. The last layer stays in float: rounding the logits would undo more than all the rest.
    The same model and images give the same bytes.

    Source: Jacob et al. 2018, arXiv:1712.05877, Sec. 2 and 3; int8 weights per channel: Krishnamoorthi 2018,
    arXiv:1806.08342, Sec. 3.

    Args:
        model_file: File that `export_onnx` wrote.
        file: Is replaced.
        calibration_NHWC: uint8, of the size that the model reads; training images, 512 are enough.

    Raises:
        ValueError: There are no images.
    """
    if len(calibration_NHWC) == 0:
        raise ValueError("there are no images to calibrate with; give training images")
    with tempfile.TemporaryDirectory() as scratch, _quiet_root_logger():
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(model_file, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        has_attention = any(node.op_type == "LayerNormalization" for node in graph.node)
        first_nodes, last_nodes = _find_ends(graph)
        with show_progress("calibrating int8", len(calibration_NHWC), "images") as advance:
            quantize_static(
                prepared,
                Path(scratch) / "int8.onnx",
                _Images(calibration_NHWC, advance),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_ATTENTION if has_attention else _CONVOLUTIONAL,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[*first_nodes, *last_nodes],
                extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": _ATTENTION},
            )
        shutil.copyfile(Path(scratch) / "int8.onnx", file)


def make_fp16(model_file: Path, file: Path) -> None:
    """Write a model that computes in float16 between its ends; images stay uint8, probabilities float32.

    The same model gives the same bytes. (onnxruntime's own converter makes an invalid graph where two of the nodes left
    in float32 share a constant, as mean and standard deviation do when they are equal.)

    Args:
        model_file: File that `export_onnx` wrote.
        file: Is replaced.
    """
    model = onnx.load(model_file)
    onnx.save(_Halving(model).convert(), file)


class _Halving:
    """The conversion of one graph to float16 between its ends."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self.ends = {name for names in _find_ends(model.graph) for name in names}
        self.weights = {weight.name: weight for weight in model.graph.initializer}
        values = onnx.shape_inference.infer_shapes(model).graph.value_info
        self.floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
        self.floats.update(name for name, weight in self.weights.items() if weight.data_type == TensorProto.FLOAT)
        self.halves: set[str] = set()  # answered by a node that computes in float16
        self.nodes: list[onnx.NodeProto] = []

    def convert(self) -> onnx.ModelProto:
        """Change the graph and return its model."""
        copies: dict[str, str] = {}
        for node in self.graph.node:
            is_half = node.name not in self.ends
            for index, name in enumerate(node.input):
                if name in self.floats and (name in self.halves) != is_half and (is_half or name not in self.weights):
                    if name not in copies:
                        copies[name] = self._copy(name, is_half)
                    node.input[index] = copies[name]
            if is_half:
                self.halves.update(node.output)
                _answer_in_half(node)
            self.nodes.append(node)
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        kept = [weight for weight in self.graph.initializer if weight.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        return self.model

    def _copy(self, name: str, is_half: bool) -> str:
        copy = f"{name}_{'fp16' if is_half else 'fp32'}"
        if name in self.weights:
            values = numpy_helper.to_array(self.weights[name]).astype(np.float16)
            self.graph.initializer.append(numpy_helper.from_array(values, copy))
        else:
            wanted = TensorProto.FLOAT16 if is_half else TensorProto.FLOAT
            self.nodes.append(helper.make_node("Cast", [name], [copy], name=f"cast_{copy}", to=wanted))
        return copy


def _answer_in_half(node: onnx.NodeProto) -> None:
    """Make a node that names float32 as the type of its answer name float16."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(attribute.t).astype(np.float16)
            attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))


class _Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Images in batches, with progress."""

    def __init__(self, images_NHWC: npt.NDArray[np.uint8], advance: Callable[[int], None]) -> None:
        self._images_NHWC, self._advance = images_NHWC, advance
        self._start = 0

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        """Return the next batch, None after the last."""
        batch_NHWC = self._images_NHWC[self._start : self._start + _CALIBRATION_BATCH]
        self._start += len(batch_NHWC)
        self._advance(len(batch_NHWC))
        return {INPUT_NAME: batch_NHWC} if len(batch_NHWC) else None


def _find_ends(graph: onnx.GraphProto) -> tuple[list[str], list[str]]:
    """Return the names of the nodes before the first layer with weights, and of the last one and all after it."""
    images = {INPUT_NAME}  # all that depends on them
    weighted = []
    for node in graph.node:
        if images.intersection(node.input):
            images.update(node.output)
            if node.op_type in _WEIGHTED and not images.issuperset(filter(None, node.input)):
                weighted.append(node)
    if not weighted:
        return [node.name for node in graph.node], []
    needed, first_nodes = set(weighted[0].input), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            first_nodes.append(node.name)
    reached, last_nodes = set(weighted[-1].output), [weighted[-1].name]
    for node in graph.node:
        if reached.intersection(node.input):
            reached.update(node.output)
            last_nodes.append(node.name)
    return first_nodes, last_nodes


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Drop what onnxruntime's tools log straight to the root logger: advice on their own options."""
    root = logging.getLogger()

    def refuse(_record: logging.LogRecord) -> bool:
        return False

    root.addFilter(refuse)
    try:
        yield
    finally:
        root.removeFilter(refuse)


@dataclass(frozen=True)
class Limits:
    """How a variant is made, and how far it may be from the trained network at every batch size.

    Attributes:
        make: Writes the second file from the first, the fp32 model, with training images, uint8
            [N, height, width, 3]; None for fp32 itself.
        providers: onnxruntime's execution providers that it is made for.
        max_difference: Of a probability; 1 where only labels count.
        top1_agreement: Lowest share of images with the same label, in [0, 1].
        accuracy_loss: Largest loss of accuracy against the trained network, in [0, 1].
        golden_tolerance: Largest difference of a golden image's probability from that of the release on another
            machine: sums have another order there; integers that overflow, as on processors without the instructions
            that int8 was certified with, differ by much more.
    """

    make: Callable[[Path, Path, npt.NDArray[np.uint8]], None] | None
    providers: tuple[str, ...]
    max_difference: float
    top1_agreement: float
    accuracy_loss: float
    golden_tolerance: float


# cuDNN's Winograd convolutions (F(4x4, 3x3)) round about three times as coarsely as sums in order, still more than a
# hundred times within fp32's limit (tests/unit/release/test_winograd.py): only classes that are equal may exchange
# places there, which the certificate allows on CUDA.
# fp16 rounds to 11 bits (5e-4) in every layer, which the layers pass on: a few 1e-3 of a probability between two nearly
# equal classes, which may exchange places there. Ten times that, or more than one label in a thousand, is no rounding:
# a value left float16's range. int8 rounds to 8 bits; what counts of it is how often the label stays.
PRECISIONS = {
    "fp32": Limits(
        make=None,
        providers=(CPU, CUDA),
        max_difference=1e-4,
        top1_agreement=1.0,
        accuracy_loss=0.0,
        golden_tolerance=1e-3,
    ),
    "fp16": Limits(
        make=lambda model_file, file, _: make_fp16(model_file, file),
        providers=(CUDA,),
        max_difference=0.05,
        top1_agreement=0.999,
        accuracy_loss=0.001,
        golden_tolerance=2e-2,
    ),
    "int8": Limits(
        make=make_int8,
        providers=(CPU,),
        max_difference=1.0,
        top1_agreement=0.99,
        accuracy_loss=0.005,
        golden_tolerance=5e-2,
    ),
}
