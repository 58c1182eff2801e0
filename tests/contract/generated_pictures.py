"""Read by schemathesis: what it sends where the description asks for a picture."""

import schemathesis
from hypothesis import strategies

from tests.unit.serving.tiny_bundle import COLOURS, paint

PICTURES = strategies.sampled_from([paint(name) for name in COLOURS])
for kind in ("image/*", "image/png", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, PICTURES)
schemathesis.openapi.format("binary", PICTURES)
