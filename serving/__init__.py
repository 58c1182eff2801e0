"""The prediction service. It stands alone: onnxruntime, numpy, Pillow and BentoML, never torch."""
