"""A model for `mlflow models serve` that takes JPEGs as base64: what its users write to send images.

python -m benchmarks.peers.mlflow_pyfunc MODEL FOLDER      # writes it to a new folder
"""

import base64
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from benchmarks.peers.image_model import ImageModel


class Base64Images(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """Classifies encoded images."""

    def load_context(self, context: Any) -> None:  # noqa: ANN401
        """Load the ONNX file that was saved with the model."""
        self._model = ImageModel(Path(context.artifacts["onnx"]))

    def predict(self, model_input: list[str], params: dict[str, Any] | None = None) -> list[list[float]]:
        """Return the class probabilities of each image."""
        images_NHWC = np.stack([self._model.decode(base64.b64decode(text)) for text in model_input])
        return self._model.classify(images_NHWC).tolist()


# MLflow runs this file to get the model.
mlflow.models.set_model(Base64Images())

if __name__ == "__main__":
    mlflow.pyfunc.save_model(
        sys.argv[2], python_model=__file__, artifacts={"onnx": sys.argv[1]}, pip_requirements=["onnxruntime"]
    )
