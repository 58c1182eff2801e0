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
    # torch's threads: one that waits for the others spins a little and then sleeps. The default, 300 times as long, made
    # steps on cores that other work shares 2 to 4 times slower; not to spin at all made augmentation 2 times slower.
    "GOMP_SPINCOUNT": "1000",
}.items():
    os.environ.setdefault(_name, _value)
