"""FastAPI with onnxruntime in threads, no batching: `python -m benchmarks.peers.fastapi_onnxruntime MODEL PORT`."""

import io
import sys

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request
from PIL import Image
from starlette.concurrency import run_in_threadpool

app = FastAPI()
session: onnxruntime.InferenceSession


def classify(body: bytes) -> dict[str, list[float]]:
    """Return the probabilities of the picture in a body, of the size that the model reads."""
    image_HWC = np.asarray(Image.open(io.BytesIO(body)).convert("RGB"), dtype=np.uint8)
    (probabilities_NK,) = session.run(None, {"images": image_HWC[None]})
    return {"probabilities": probabilities_NK[0].tolist()}


@app.post("/predict")
async def predict(request: Request) -> dict[str, list[float]]:
    """Classify the body in a thread, as FastAPI runs sync handlers."""
    return await run_in_threadpool(classify, await request.body())


if __name__ == "__main__":
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
