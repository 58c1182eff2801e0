"""LitServe with onnxruntime, batching: `python -m benchmarks.peers.litserve_onnxruntime MODEL PORT`.

Images come as base64 in JSON, as its documentation sends them.

Shape suffixes: N = images in the batch, H = height, W = width, C = colour channels, K = classes.
"""

import base64
import sys
from pathlib import Path

import litserve
import numpy as np
import numpy.typing as npt

from benchmarks.peers.image_model import ImageModel

MAX_BATCH_SIZE = 64
# A batch is classified when it is full or this old. 0 lets an idle worker spin, which takes a whole core.
BATCH_TIMEOUT_S = 0.002


class ImageAPI(litserve.LitAPI):
    """Decodes, classifies and answers in LitServe's worker process."""

    def setup(self, device: str) -> None:
        """Load the model, in the worker."""
        self._model = ImageModel(Path(sys.argv[1]))

    def decode_request(self, request: dict[str, str]) -> npt.NDArray[np.uint8]:
        """Return the image of a request, uint8 [H, W, C]."""
        return self._model.decode(base64.b64decode(request["image"]))

    def batch(self, inputs: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        """Return the images as one array, uint8 [N, H, W, C]."""
        return np.stack(inputs)

    def predict(self, x: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the class probabilities, float32 [N, K]."""
        return self._model.classify(x)

    def unbatch(self, output: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """Return the probabilities of each image, float32 [K]."""
        return list(output)

    def encode_response(self, output: npt.NDArray[np.float32]) -> dict[str, list[float]]:
        """Return the answer to one request."""
        return {"probabilities": output.tolist()}


if __name__ == "__main__":
    api = ImageAPI(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S)
    litserve.LitServer(api, accelerator="cpu").run(
        host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False, generate_client_file=False
    )
