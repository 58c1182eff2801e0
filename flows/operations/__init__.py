"""Operation of runs and releases: Prefect, deployments, healing, devices, watching, notification."""
