"""Flows join the stages: data, training, tracking, export, registry; and the `darkroom` command."""
