"""The prediction service. It stands alone: onnxruntime, numpy, Pillow and BentoML, never torch."""

import os

# onnxruntime reads it when it is first imported, and would report its use.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
