"""How Prefect runs here: embedded under DARKROOM_HOME unless PREFECT_API_URL names a server.

Call `configure` before anything imports prefect: it reads its settings at import.
"""

import os
from pathlib import Path

from model_code.settings import Settings


def configure(settings: Settings) -> None:
    """Set Prefect's environment where the user has not set it."""
    home = settings.home / "prefect"
    defaults = {
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "results"),
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    if "PREFECT_API_URL" not in os.environ:
        defaults |= {
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
            # The first start makes the database.
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
            # The command prints its own lines; an error is shown once, by the command.
            "PREFECT_LOGGING_LEVEL": "CRITICAL",
            "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        }
        Path(defaults["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
