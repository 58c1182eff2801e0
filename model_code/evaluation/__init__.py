"""Metrics and plots of trained networks."""
