"""The library: every stage from pictures to a registered, exported model. See docs/architecture.md."""

import os

# MLflow reads these when it is first imported, wherever that happens: it reports nothing about its use, looks no
# package up online, and leaves progress and log lines to Darkroom.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # torch's threads: one that waits for the others sleeps. On cores that other work shares, spinning made a training
    # 3 to 6 times slower; on idle ones both are equal (docs/benchmarks.md).
    "OMP_WAIT_POLICY": "PASSIVE",
}.items():
    os.environ.setdefault(_name, _value)
