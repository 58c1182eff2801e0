"""FastAPI with onnxruntime in threads, no batching: `python -m benchmarks.peers.fastapi_onnxruntime MODEL PORT`."""

import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

from benchmarks.peers.image_model import ImageModel

app = FastAPI()
model: ImageModel


def classify(body: bytes) -> dict[str, list[float]]:
    """Return the probabilities of the image in a body."""
    return {"probabilities": model.classify(model.decode(body)[None])[0].tolist()}


@app.post("/predict")
async def predict(request: Request) -> dict[str, list[float]]:
    """Classify the body in a thread, as FastAPI runs sync handlers."""
    return await run_in_threadpool(classify, await request.body())


if __name__ == "__main__":
    model = ImageModel(Path(sys.argv[1]))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
