"""A real MLflow store in SQLite."""

import atexit
import shutil
import sqlite3
import tempfile
import warnings
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

import pytest

from model_code.settings import Settings
from model_code.tracking.store import open_store

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow 3 uses a loader that SQLAlchemy 2.1 deprecates
    # Not before model_code, which sets what MLflow reads when it is imported.
    import mlflow
    import mlflow.store.tracking.sqlalchemy_store

ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID")


@contextmanager
def mlflow_given_back():
    """Give MLflow's global addresses back as they were: it keeps them in variables and in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ADDRESSES:
            # Set first: what was absent is taken away again at the end only then.
            patch.setenv(name, "")
            patch.delenv(name)
        yield
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)


@contextmanager
def open_small_store(home: Path):
    """Return (settings, client) of a new store in `home`."""
    settings = make_settings(home)
    with mlflow_given_back():
        begin_store(home)
        yield settings, open_store(settings)


def begin_store(home: Path) -> None:
    """Give a home without one the database that a first use makes in seconds: one is made and copied."""
    if (home / "mlflow.db").exists():
        return
    home.mkdir(parents=True, exist_ok=True)
    made = _make_database()
    shutil.copyfile(made / "mlflow.db", home / "mlflow.db")
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        places = (made.as_uri(), home.as_uri())
        database.execute("UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)", places)


@cache
def _make_database() -> Path:
    """Return a folder with the database of a new store; it is there as long as this process."""
    home = Path(tempfile.mkdtemp(prefix="darkroom-store-"))
    atexit.register(shutil.rmtree, home)
    with mlflow_given_back():
        open_store(make_settings(home))
    return home


def make_settings(home: Path, server: str | None = None) -> Settings:
    return Settings(
        home=home,
        tracking_uri=server or f"sqlite:///{home / 'mlflow.db'}",
        has_mlflow_server=server is not None,
    )


@contextmanager
def store_away(settings: Settings):
    """While the block runs the store answers every request about runs with an error of its database."""
    rename_table(settings, "runs", "runs_away")
    try:
        yield
    finally:
        rename_table(settings, "runs_away", "runs")


def rename_table(settings: Settings, old: str, new: str) -> None:
    with closing(sqlite3.connect(settings.home / "mlflow.db", timeout=30)) as database, database:
        database.execute(f"ALTER TABLE {old} RENAME TO {new}")
