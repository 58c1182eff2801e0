"""Sweeps: spaces of settings, and trials that several processes share."""
