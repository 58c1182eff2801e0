"""Every job, by what it is about; a job is one request class with its `run`, found in any file of this folder."""

from importlib import import_module
from pkgutil import iter_modules

from flows.jobs.job import Job

for _file in iter_modules(__path__, f"{__name__}."):
    import_module(_file.name)

JOBS = tuple(Job.__subclasses__())
