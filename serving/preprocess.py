"""The public name of the decoding function that training and serving share."""

from serving.bundle.preprocess import decode_picture

__all__ = ["decode_picture"]
