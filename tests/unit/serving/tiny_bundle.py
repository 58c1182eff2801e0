"""A real bundle with a real ONNX graph, small enough for a test: it names the colour nearest to an image's mean."""

import io
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from serving.bundle.manifest import GOLDEN_FILE, BatchCertificate, Certificate, Manifest, Variant
from serving.bundle.session import CPU, open_session, run_session
from serving.bundle.store import (
    MANIFEST_FILE,
    MODEL_FILE,
    Change,
    Pointer,
    hash_file,
    name_file,
    write_bundle,
    write_manifest,
    write_pointer,
)

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
    repeats=0,
):
    """Write a graph whose logits are minus the squared distance of the mean colour to each class's colour.

    `repeats` operations whose result is not used make it slow.
    """
    colours_KC = np.array(list(COLOURS.values()), dtype=np.float32)
    weights_CK = 2 * colours_KC.T / softness
    bias_K = -(colours_KC**2).sum(axis=1) / softness
    nodes = [
        helper.make_node("Cast", [input_name], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["scores"]),
        *(
            helper.make_node("Tanh", [f"waste{number}" if number else "scores"], [f"waste{number + 1}"])
            for number in range(repeats)
        ),
        helper.make_node("Mul", [f"waste{repeats}" if repeats else "scores", "nothing"], ["wasted"]),
        helper.make_node("Add", ["scores", "wasted"], ["same scores"]),
        helper.make_node("Add", ["same scores", "bias"], ["logits" if softmax else output_name]),
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
            numpy_helper.from_array(np.zeros(1, dtype=np.float32), "nothing"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def make_variant(model_file: Path, precision="fp32", **fields) -> Variant:
    """Describe a file that nothing was measured of."""
    known = {"sha256": hash_file(model_file), "size_bytes": model_file.stat().st_size, "certificates": ()}
    return Variant(precision=precision, file=name_file(precision), **(known | fields))


def make_certificate(model_file: Path, precision: str, refusal=None) -> Certificate:
    """Certify a file for the CPU, by declaration."""
    batch = BatchCertificate(batch_size=1, max_difference=0, mean_difference=0, top1_agreement=1, accuracy=0.5)
    return Certificate(
        precision=precision,
        provider=CPU,
        sha256=hash_file(model_file),
        split="test",
        count=10,
        torch_accuracy=0.5,
        torch_accuracy_interval=(0.19, 0.81),
        accuracy_interval=(0.19, 0.81),
        agreement_interval=(0.69, 1),
        opset=18,
        versions={},
        batches=(batch,),
        refusal=refusal,
    )


def make_two_variants(
    bundles_dir: Path,
    *,
    manifest=None,
    refusal=None,
    golden_error=0.0,
    fp32_golden_error=0.0,
    fp32_repeats=0,
    golden_tolerance=None,
    **int8_options,
) -> Path:
    """Write a bundle with an fp32 and an int8 file, and with golden images that are answered for real.

    Args:
        bundles_dir: Where.
        manifest: Overrides single fields of the manifest.
        refusal: Of the int8 certificate.
        golden_error: Is added to the int8 variant's golden answers.
        fp32_golden_error: The same of fp32.
        fp32_repeats: Of fp32's `write_model`.
        golden_tolerance: Of the int8 variant.
        int8_options: Of the int8 file's `write_model`.
    """
    source = bundles_dir / ".int8"
    source.mkdir(parents=True)
    fp32_file, int8_file = source / MODEL_FILE, source / name_file("int8")
    write_model(fp32_file, repeats=fp32_repeats)
    write_model(int8_file, **int8_options)
    images_NHWC = np.random.default_rng(0).integers(0, 256, (4, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    answers = {
        precision: run_session(open_session(file, CPU, 1), images_NHWC)
        for precision, file in (("fp32", fp32_file), ("int8", int8_file))
    }
    answers["int8"] = answers["int8"] + np.float32(golden_error)
    answers["fp32"] = answers["fp32"] + np.float32(fp32_golden_error)
    np.savez(source / GOLDEN_FILE, images_NHWC=images_NHWC, **answers)
    int8_fields = {
        "certificates": (make_certificate(int8_file, "int8", refusal),),
        "golden_tolerance": golden_tolerance,
    }
    fields = {
        "variants": (make_variant(fp32_file), make_variant(int8_file, "int8", **int8_fields)),
        "golden_sha256": hash_file(source / GOLDEN_FILE),
    }
    folder = make_bundle(bundles_dir, source=source, manifest=fields | (manifest or {}))
    shutil.rmtree(source)
    return folder


def make_bundle(bundles_dir: Path, name="cifar10", *, manifest=None, source=None, trusted=(), **model_options) -> Path:
    """Write a bundle; `manifest` overrides single fields of it, `source` is a folder that has its files already."""
    bundles_dir.mkdir(parents=True, exist_ok=True)
    scratch = bundles_dir / ".unreleased"
    scratch.mkdir()
    model_file = scratch / MODEL_FILE
    write_model(model_file, **model_options)
    fields = {
        "name": name,
        "classes": tuple(COLOURS),
        "image_size": IMAGE_SIZE,
        "resize_size": RESIZE_SIZE,
        "opset": 18,
        "variants": (make_variant(model_file),),
        "calibration": None,
        "golden_sha256": None,
        "recipe": "mean_colour",
        "run_id": "0" * 32,
        "accuracy_fraction": 0.5,
        "dataset": "colours",
        "data_checksum": "0" * 64,
        "git_sha": "unknown",
        "versions": {},
        "created": "2026-01-02T03:04:05Z",
    }
    write_manifest(source or scratch, Manifest(**(fields | (manifest or {}))))
    folder = write_bundle(bundles_dir, source or scratch, trusted)
    shutil.rmtree(scratch)
    return folder


def release(bundles_dir: Path, name="cifar10", version="1", **options) -> Path:
    """Write a bundle and point at it."""
    folder = make_bundle(bundles_dir, name, **options)
    point_at(bundles_dir, name, version, folder)
    return folder


def point_at(bundles_dir: Path, name: str, version: str, folder: Path) -> None:
    """Make a bundle the champion."""
    change = Change(
        number=int(version),
        action="promote",
        from_version=None,
        to_version=version,
        at="2026-01-02T03:04:05+00:00",
        by="test",
        why="test",
        verdict="",
    )
    sha256 = hash_file(folder / MANIFEST_FILE)
    write_pointer(
        bundles_dir, name, Pointer(version=version, bundle=folder.name, manifest_sha256=sha256, change=change)
    )


def encode(image: Image.Image, kind="PNG", **options) -> bytes:
    """Return the encoded file of an image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def paint(colour="red", size=(12, 9), kind="PNG") -> bytes:
    """Return the encoded file of an image of one colour."""
    return encode(Image.new("RGB", size, COLOURS[colour]), kind)


def paint_bomb(width, height) -> bytes:
    """Return a PNG that announces a size and holds almost nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
