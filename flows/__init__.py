"""Flows join the stages: data, training, tracking, export, registry; and the `darkroom` command."""

import serving  # noqa: F401 - first: SIGTERM ends process 1 from then on
