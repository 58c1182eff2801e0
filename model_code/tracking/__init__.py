"""Results -> MLflow and TensorBoard, nothing else."""

import logging

# They print each failed request, the second with a traceback, beside the error that they raise.
for _name in ("urllib3.connectionpool", "mlflow.store.db.utils"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
