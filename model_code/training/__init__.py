"""From a config and pictures to a trained network; knows neither MLflow nor Prefect."""
