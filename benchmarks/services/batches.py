"""Many images in one request, beside onnxruntime without HTTP: how much of its speed arrives."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from benchmarks.services.contenders import OURS, Body, Service
from benchmarks.services.figures import summarise
from benchmarks.services.http_load import count_refused, load
from serving.bundle.processors import count_cpus
from serving.bundle.session import CPU, measure_speed, open_session, run_session
from serving.models.predictions import FIELD_NAME

IMAGES = 64
CONNECTIONS = 4
LEAST_REQUESTS = 40
_FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}


def build_multipart(image: bytes, count: int) -> Body:
    """Return a body with one image so many times."""
    files = [(FIELD_NAME, (f"{position}.jpg", image, "image/jpeg")) for position in range(count)]
    request = httpx.Request("POST", "http://localhost", files=files)
    return Body(request.read(), request.headers["Content-Type"])


def measure_batches(
    services: dict[str, Service],
    bundle: Path,
    image: bytes,
    image_HWC: npt.NDArray[np.uint8],
    repeats: int,
    seconds: int,
) -> list[dict[str, Any]]:
    """Measure ours with `IMAGES` in each request and onnxruntime with batches of as many, in turn.

    Args:
        services: All that run, by name and paused; those that are ours are measured.
        bundle: Folder of the champion.
        image: An encoded image.
        image_HWC: The same decoded, uint8.
        repeats: Repeats of each measurement.
        seconds: Length of each measurement; longer for a network that answers few requests in that time.

    Returns:
        For each precision summaries of `pictures_per_s`, of `alone_1_per_s` and `alone_64_per_s` (onnxruntime alone at
        batches of 1 and of `IMAGES`, images/s) and of `share_percent`; `refused`, requests without a 2xx.
    """
    body, records = build_multipart(image, IMAGES), []
    for name in (name for name in OURS if name in services):
        precision = name.removeprefix("ours-")
        session = open_session(bundle / _FILES[precision], CPU, count_cpus())
        batch_NHWC = np.repeat(image_HWC[None], IMAGES, axis=0)
        served, alone, alone_1, refused = [], [], [], 0
        for repeat in range(repeats):
            alone.append(measure_speed({precision: partial(run_session, session)}, batch_NHWC, seconds)[precision])
            # Requests that are under way at the end do not count.
            window_s = max(seconds, math.ceil(LEAST_REQUESTS * IMAGES / alone[-1]))
            with services[name].awake():
                found = load(services[name].address, body, CONNECTIONS, window_s)
            served.append(found["requests_per_s"] * IMAGES)
            refused += count_refused(found)
            alone_1.append(
                measure_speed({precision: partial(run_session, session)}, batch_NHWC[:1], seconds)[precision]
            )
            said = f"{served[-1]:,.0f} images/s, onnxruntime alone {alone[-1]:,.0f}"
            print(f"{IMAGES} images in a request  {repeat + 1}/{repeats}  {precision}: {said}", flush=True)
        records.append(
            {
                "precision": precision,
                "images": IMAGES,
                "connections": CONNECTIONS,
                "pictures_per_s": summarise(served),
                "alone_64_per_s": summarise(alone),
                "alone_1_per_s": summarise(alone_1),
                "share_percent": summarise([100 * ours / limit for ours, limit in zip(served, alone, strict=True)]),
                "refused": refused,
            }
        )
    return records
