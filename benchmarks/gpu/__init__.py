"""Proof of the whole GPU path in one command that needs no network, MLflow or Prefect."""
