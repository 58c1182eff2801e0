"""Revision of MLflow's database in a home: one of a newer MLflow is refused before anything is loaded."""

import sqlite3
from contextlib import closing
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from model_code.errors import TrackingError
from model_code.settings import Settings


def check_revision(settings: Settings) -> None:
    """Refuse a home's database that the installed MLflow does not know.

    Raises:
        TrackingError: It was written by a newer one.
    """
    file, mlflow = settings.database, find_spec("mlflow")
    if file is None or not file.exists() or mlflow is None or mlflow.origin is None:
        return
    scripts = Path(mlflow.origin).parent / "store/db_migrations/versions"
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", timeout=0.5, uri=True)) as database:
            [(revision,)] = database.execute("SELECT version_num FROM alembic_version")
    except (sqlite3.Error, ValueError):
        return
    if scripts.is_dir() and not any(scripts.glob(f"{revision}_*.py")):
        raise TrackingError(
            f"{file} was written by a newer MLflow than {version('mlflow')}, which is installed (its revision "
            f"{revision} is unknown here); install the newer one, or restore a backup"
        )
