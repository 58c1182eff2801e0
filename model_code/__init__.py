"""The library: every stage from images to a registered, exported model. See docs/architecture.md."""

import os

# MLflow reads these when it is first imported, wherever that happens: it reports nothing about its use, looks no
# package up online, and leaves progress and log lines to Darkroom. A server that refuses connections is given up after
# some 3 s, one that swallows them after 100 s; who can wait longer asks again (model_code/tracking/outage.py).
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # onnxruntime would report its use.
    "ORT_DISABLE_TELEMETRY": "1",
    # Of torch: a thread that waits for the others spins a little, then sleeps. The default, 300 times as long, made
    # steps 2 to 4 times slower on cores that other work shares; not to spin at all halved the speed of augmentation.
    "GOMP_SPINCOUNT": "1000",
}.items():
    os.environ.setdefault(_name, _value)
