"""Retraining: what looks for a cause, and the training that answers it."""

from typing import Literal

from flows.jobs.job import Job, ReleaseName, option
from model_code.settings import load_settings


class WatchPredictions(Job):
    """Raise an event for each released model whose predictions drift, or that enough feedback came in for."""

    flow = "watch-predictions"

    max_drift: float = option(0.25, "Population stability index; 0.25 is a large shift.", gt=0)
    enough_feedback: int = option(200, "New images with true labels.", ge=1)

    def run(self) -> None:
        from flows.operations.prediction_watch import tell_causes

        for line in tell_causes(load_settings(), self.max_drift, self.enough_feedback):
            print(line)


class Retrain(Job):
    """Train with the champion's settings on the images that are there now, and release it, or show that it could be.

    Feedback is added to the training images: DATASET-with-feedback beside DATASET, which stays as it is. A training
    of the same settings, images and code is kept: a release that failed does not cost another one. Why it ran is on
    the run's page and in the ledger.
    """

    flow, run_name, is_retried = "retrain", "retrain-{name}", True

    name: ReleaseName = option(..., "Registered name.")
    mode: Literal["enabled", "dry_run"] = option("dry_run", "enabled promotes it if the gate finds it better.")
    why: str = option("trained again by hand", "Reason for the ledger.")

    def run(self) -> None:
        from flows.operations.retraining import retrain

        retrain(self.name, self.mode, self.why)
