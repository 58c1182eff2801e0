"""A trained network -> one ONNX file that reads uint8 pictures and answers probabilities."""

import logging
import warnings
from pathlib import Path

import torch
from torch import nn

OPSET = 20
INPUT_NAME, OUTPUT_NAME = "images", "probabilities"


def export_onnx(model: nn.Module, image_size: int, file: Path) -> None:
    """Write a model with a softmax behind it as ONNX.

    The graph reads uint8 [batch, height, width, 3] called `images` and answers float32 [batch, classes] called
    `probabilities`, each row summing to 1; the batch is dynamic, weights are inside the file.

    Args:
        model: uint8 pictures in, logits out (`model_code.training.supervised.load_model`); on the CPU.
        image_size: Height and width, pixels.
        file: Is replaced.
    """
    with_softmax = nn.Sequential(model, nn.Softmax(dim=1)).eval()
    example = torch.zeros((2, image_size, image_size, 3), dtype=torch.uint8)
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns of its own internals
            torch.onnx.export(
                with_softmax,
                (example,),
                str(file),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    finally:
        exporter_log.setLevel(level)
