"""From a config and images to a trained network; knows neither MLflow nor Prefect."""
