"""Every job, by what it is about; a job is one request class with its `run`."""

from flows.jobs import data as data
from flows.jobs import machine as machine
from flows.jobs import releases as releases
from flows.jobs import report as report
from flows.jobs import retraining as retraining
from flows.jobs import service as service
from flows.jobs import training as training
from flows.jobs.job import Job

JOBS = tuple(Job.__subclasses__())
