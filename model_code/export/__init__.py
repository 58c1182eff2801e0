"""A trained network -> ONNX, proven equal, packed as a bundle."""
