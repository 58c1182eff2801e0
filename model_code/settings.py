"""Places of Darkroom's state and addresses of its servers: the only reader of environment variables here.

Everything about an experiment is in its config (`model_code/training/config.py`); the environment holds addresses and
paths only.
"""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from model_code.errors import UsageError


class Settings(BaseModel):
    """Paths under DARKROOM_HOME and server addresses.

    Attributes:
        home: DARKROOM_HOME, `./.darkroom` when unset; absolute.
        inbox: DARKROOM_INBOX, which the prediction service writes; None where that is the home.
        tracking_uri: MLFLOW_TRACKING_URI, or the SQLite database in `home`.
        has_mlflow_server: True if the tracking URI is a server's address.
        has_prefect_server: True if PREFECT_API_URL names a server.
        webhook_url: DARKROOM_WEBHOOK_URL, which is told of scheduled runs that fail; None without one.
        service_url: DARKROOM_SERVICE_URL, the prediction service that the scheduled checks ask; None without one.
        service_key: DARKROOM_API_KEY, for a service that wants a key; None without one.
        local_cache_dir: DARKROOM_LOCAL_CACHE, where trainings copy the packed images of a shared disk; None to read
            them where they are.
        storage: DARKROOM_STORAGE, where trainings exchange images and runs with other machines; None without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path
    tracking_uri: str
    has_mlflow_server: bool
    has_prefect_server: bool = False
    webhook_url: str | None = None
    service_url: str | None = None
    inbox: Path | None = None
    service_key: str | None = Field(default=None, repr=False)
    local_cache_dir: Path | None = None
    storage: str | None = None

    @property
    def database(self) -> Path | None:
        """MLflow's SQLite database in `home`; None where runs are tracked elsewhere."""
        file = self.home / "mlflow.db"
        return file if self.tracking_uri == f"sqlite:///{file}" else None

    @property
    def data_dir(self) -> Path:
        """Downloads and other files as they came."""
        return self.home / "data"

    @property
    def cache_dir(self) -> Path:
        """Packed data sets."""
        return self.home / "cache"

    @property
    def artifacts_dir(self) -> Path:
        """MLflow's artifacts when no MLflow server is used."""
        return self.home / "artifacts"

    @property
    def checkpoints_dir(self) -> Path:
        """One folder per training run."""
        return self.home / "checkpoints"

    @property
    def bundles_dir(self) -> Path:
        """Released models, one folder per name."""
        return self.home / "bundles"

    @property
    def recipes_dir(self) -> Path:
        """Recipes of one's own, one TOML file each."""
        return self.home / "recipes"

    @property
    def sweeps_dir(self) -> Path:
        """One folder per sweep."""
        return self.home / "sweeps"

    @property
    def feedback_dir(self) -> Path:
        """True labels that the service was told, one folder per registered name (`serving/observation/feedback.py`)."""
        return (self.inbox or self.home) / "feedback"

    @property
    def retraining_dir(self) -> Path:
        """What a retraining was given and what was told before, per registered name."""
        return self.home / "retraining"

    @property
    def locks_dir(self) -> Path:
        """Lock files: one per device, one per registered name."""
        return self.home / "locks"


def load_settings() -> Settings:
    """Read the environment now; nothing is created on disk.

    Raises:
        UsageError: DARKROOM_HOME is a file or below one, cannot be read, or cannot stand in a database address.
    """
    home = Path(os.environ.get("DARKROOM_HOME") or ".darkroom").expanduser().resolve()
    if set("?%") & set(str(home)):
        raise UsageError(f"DARKROOM_HOME={str(home)!r} has a ? or %, which a database address cannot hold")
    try:
        existing = next(place for place in (home, *home.parents) if place.exists())
    except OSError as error:
        raise UsageError(f"DARKROOM_HOME={home}: {error.strerror}; set DARKROOM_HOME to another folder") from error
    if not existing.is_dir():
        raise UsageError(f"DARKROOM_HOME={home}: {existing} is a file; set DARKROOM_HOME to a folder")
    inbox, local_cache = os.environ.get("DARKROOM_INBOX"), os.environ.get("DARKROOM_LOCAL_CACHE")
    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"
    return Settings(
        home=home,
        tracking_uri=tracking_uri,
        has_mlflow_server=tracking_uri.startswith(("http://", "https://")),
        has_prefect_server=bool(os.environ.get("PREFECT_API_URL")),
        inbox=Path(inbox).expanduser().resolve() if inbox else None,
        local_cache_dir=Path(local_cache).expanduser().resolve() if local_cache else None,
        storage=os.environ.get("DARKROOM_STORAGE") or None,
        webhook_url=os.environ.get("DARKROOM_WEBHOOK_URL") or None,
        service_url=os.environ.get("DARKROOM_SERVICE_URL") or None,
        service_key=os.environ.get("DARKROOM_API_KEY") or None,
    )


def read_rank() -> tuple[int, int]:
    """Return this process's rank and how many there are, as torchrun's environment says; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def read_image_sha() -> str | None:
    """Return the commit that a container's image was built from, as its environment says; None outside of one."""
    return os.environ.get("DARKROOM_GIT_SHA") or None
