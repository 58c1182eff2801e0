"""A real MLflow store in SQLite."""

import warnings
from contextlib import contextmanager
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
            patch.delenv(name, raising=False)
        yield
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)


@contextmanager
def open_small_store(home: Path):
    """Return (settings, client) of a new store in `home`."""
    settings = make_settings(home)
    with mlflow_given_back():
        yield settings, open_store(settings)


def make_settings(home: Path, server: str | None = None) -> Settings:
    return Settings(
        home=home,
        tracking_uri=server or f"sqlite:///{home / 'mlflow.db'}",
        has_mlflow_server=server is not None,
    )
