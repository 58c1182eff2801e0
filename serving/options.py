"""Service options.

The launcher puts them into the environment, because it is BentoML that constructs the service; who runs
`bentoml serve` sets the variable with JSON of the same fields.
"""

import os
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

OPTIONS_VARIABLE = "DARKROOM_SERVICE_OPTIONS"
# Longer than usual load balancers keep theirs: who closes first must not be the service.
DEFAULT_KEEP_ALIVE_S = 75


_ROOT_PATH = re.compile(r"(/[\w.~-]+){1,20}")


def is_root_path(text: str) -> bool:
    """Return whether a text is a prefix of addresses: begins with a slash, ends without one, is not encoded."""
    return len(text) <= 200 and _ROOT_PATH.fullmatch(text) is not None


class ServiceOptions(BaseModel):
    """Options of the service; the defaults are those of one person at one machine.

    Attributes:
        precision: The variant that is to answer; the fastest of each model when None.
        requires_cuda: True if a model that would run on the CPU is refused.
        registry: Address of an MLflow server whose champions are fetched; None for the releases on this machine.
        shadow_share: Share of the requests that a challenger, where there is one, looks at too, in [0, 1].
        api_keys_file: One key per line, of which each request under /v1 and /v2 must bring one; None for no keys.
        allowed_origins: Web pages of other origins that may call the service, e.g. `https://example.org`.
        allowed_hosts: Names, with a dot, under which browsers reach the service, e.g. `darkroom.example.org`.
        log_share: Share of the answered images that is written to the request log, in [0, 1].
        keeps_images: True if the log keeps the images themselves too.
        logs_access: True to write one JSON object for each request to stdout.
        takes_feedback: True if `POST /v1/feedback` keeps right labels, and the images that come with them.
        shows_review: True if `POST /v1/review` shows the kept images of which a model was least sure; needs both.
        gives_examples: True if the answer to a wrong form has lines that work.
        root_path: Prefix of the addresses behind a proxy that strips it, e.g. `/ml/darkroom`; empty without one.
        keep_alive_s: Seconds for which an idle connection stays open, unless its place is needed.
        allows_uncommon_formats: True to decode PPM, run-length BMP and TIFF of uncommon compressions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: str | None = None
    requires_cuda: bool = False
    registry: str | None = None
    shadow_share: float = Field(0.1, ge=0, le=1)
    api_keys_file: Path | None = None
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    log_share: float = Field(0.0, ge=0, le=1)
    keeps_images: bool = False
    logs_access: bool = False
    takes_feedback: bool = False
    shows_review: bool = False
    gives_examples: bool = False
    root_path: str = ""
    keep_alive_s: int = Field(DEFAULT_KEEP_ALIVE_S, ge=1)
    allows_uncommon_formats: bool = False

    def publish(self) -> None:
        """Publish them to `read_options` in this process and in those that it starts."""
        os.environ[OPTIONS_VARIABLE] = self.model_dump_json()


def read_options() -> ServiceOptions:
    """Return the published options; the defaults where nothing is published.

    Raises:
        pydantic.ValidationError: The variable holds something else.
    """
    return ServiceOptions.model_validate_json(os.environ.get(OPTIONS_VARIABLE) or "{}")
