"""A real bundle with a real ONNX graph, small enough for a test: it names the colour nearest to a picture's mean."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from serving.bundle import Manifest, Pointer, hash_file, write_bundle, write_pointer

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}
IMAGE_SIZE = 8
RESIZE_SIZE = 10


def write_model(
    path: Path,
    *,
    input_name="images",
    output_name="probabilities",
    batch="batch",
    image_size=IMAGE_SIZE,
    softness=4000.0,
    softmax=True,
):
    """Write a graph whose logits are minus the squared distance of the mean colour to each class's colour."""
    colours_KC = np.array(list(COLOURS.values()), dtype=np.float32)
    weights_CK = 2 * colours_KC.T / softness
    bias_K = -(colours_KC**2).sum(axis=1) / softness
    nodes = [
        helper.make_node("Cast", [input_name], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["scores"]),
        helper.make_node("Add", ["scores", "bias"], ["logits" if softmax else output_name]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], [output_name], axis=1))
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info(input_name, TensorProto.UINT8, [batch, image_size, image_size, 3])],
        [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, [batch, len(COLOURS)])],
        [
            numpy_helper.from_array(np.array([1, 2], dtype=np.int64), "axes"),
            numpy_helper.from_array(weights_CK.astype(np.float32), "weights"),
            numpy_helper.from_array(bias_K.astype(np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def make_bundle(bundles_dir: Path, name="cifar10", *, manifest=None, **model_options) -> Path:
    """Write a bundle; `manifest` overrides single fields of it."""
    bundles_dir.mkdir(parents=True, exist_ok=True)
    model_file = bundles_dir / "unreleased.onnx"
    write_model(model_file, **model_options)
    fields = {
        "name": name,
        "classes": tuple(COLOURS),
        "image_size": IMAGE_SIZE,
        "resize_size": RESIZE_SIZE,
        "precision": "fp32",
        "opset": 18,
        "sha256": hash_file(model_file),
        "size_bytes": model_file.stat().st_size,
        "recipe": "mean_colour",
        "run_id": "0" * 32,
        "accuracy_fraction": 0.5,
        "parity": {},
        "versions": {},
        "created": "2026-01-02T03:04:05Z",
    }
    folder = write_bundle(bundles_dir, model_file, Manifest(**(fields | (manifest or {}))))
    model_file.unlink()
    return folder


def release(bundles_dir: Path, name="cifar10", version="1", **options) -> Path:
    """Write a bundle and point at it."""
    folder = make_bundle(bundles_dir, name, **options)
    write_pointer(bundles_dir, name, Pointer(version=version, bundle=folder.name))
    return folder


def encode(picture: Image.Image, kind="PNG", **options) -> bytes:
    """Return the encoded file of a picture."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def paint(colour="red", size=(12, 9), kind="PNG") -> bytes:
    """Return the encoded file of a picture of one colour."""
    return encode(Image.new("RGB", size, COLOURS[colour]), kind)


def paint_bomb(width, height) -> bytes:
    """Return a PNG that announces a size and holds almost nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
