"""Read by schemathesis: what it sends where the description asks for an image."""

import schemathesis
from hypothesis import strategies

from tests.unit.serving.tiny_bundle import COLOURS, paint

IMAGES = strategies.sampled_from([paint(name) for name in COLOURS])
for kind in ("image/*", "image/png", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, IMAGES)
schemathesis.openapi.format("binary", IMAGES)
