"""The flows of the deployments: prefect.yaml names them, and `darkroom deploy` hands them to a Prefect server."""

from flows.jobs.data import AddData
from flows.jobs.machine import CheckHealth
from flows.jobs.releases import Release, RollBack
from flows.jobs.report import Report
from flows.jobs.retraining import Retrain, WatchPredictions
from flows.jobs.training import Train, TrainAll
from flows.operations.flow import schedule

add_data = schedule(AddData)
train_recipe = schedule(Train)
train_every_recipe = schedule(TrainAll)
release_model = schedule(Release)
roll_back_model = schedule(RollBack)
retrain = schedule(Retrain)
watch_predictions = schedule(WatchPredictions)
write_report = schedule(Report)
check_health = schedule(CheckHealth)
