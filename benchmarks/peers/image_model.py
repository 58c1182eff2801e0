"""Work of every peer on an image: our decoding, and onnxruntime as it comes.

Shape suffixes: N = images in the batch, H = height, W = width, C = colour channels, K = classes.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from serving.bundle.preprocess import decode_picture


class ImageModel:
    """An ONNX file on the CPU, with as many threads as onnxruntime takes by itself."""

    def __init__(self, file: Path) -> None:
        self._session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self._side = self._session.get_inputs()[0].shape[1]

    def decode(self, data: bytes) -> npt.NDArray[np.uint8]:
        """Return an encoded image as uint8 [H, W, C]."""
        return decode_picture(data, self._side)

    def classify(self, images_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the class probabilities, float32 [N, K]."""
        probabilities_NK: npt.NDArray[np.float32] = self._session.run(None, {"images": images_NHWC})[0]
        return probabilities_NK
