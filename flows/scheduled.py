"""The flows of the deployments: prefect.yaml names them, and `darkroom deploy` hands them to a Prefect server.

Each job that has a flow is here under its name: the flow `train-recipe` is `flows.scheduled.train_recipe`.
"""

from flows.jobs import JOBS
from flows.operations.flow import schedule

globals().update({kind.flow.replace("-", "_"): schedule(kind) for kind in JOBS if kind.flow})
