"""Observation of the service: metrics, drift, the request log, and the labels that people send back."""
