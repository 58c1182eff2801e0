"""What keeps runs and releases going: Prefect, deployments, healing, devices, watching, notification."""
