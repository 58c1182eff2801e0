"""A trained network -> one ONNX file that reads uint8 images and answers probabilities.

Shape suffixes: B = images, K = classes.
"""

import logging
import math
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from serving.bundle.session import INPUT_NAME, OUTPUT_NAME

OPSET = 20


class _Divide(nn.Module):
    def __init__(self, divisor: float) -> None:
        super().__init__()
        self.divisor = divisor

    def forward(self, logits_BK: Tensor) -> Tensor:
        return logits_BK / self.divisor


def export_onnx(model: nn.Module, image_size: int, file: Path, temperature: float = 1.0) -> None:
    """Write a model with a softmax behind it as ONNX.

    The graph reads uint8 [batch, height, width, 3] called `images` and answers float32 [batch, classes] called
    `probabilities`, each row summing to 1; the batch is dynamic, weights are inside the file.

    Args:
        model: uint8 images in, logits out (`model_code.training.supervised.load_model`); on the CPU.
        image_size: Height and width, pixels.
        file: Is replaced.
        temperature: The logits are divided by it; 1 adds nothing to the graph.

    Raises:
        ValueError: The temperature is not a number above 0.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature={temperature}; a number above 0 is allowed")
    divisions = [] if temperature == 1 else [_Divide(temperature)]
    with_softmax = nn.Sequential(model, *divisions, nn.Softmax(dim=1)).eval()
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
