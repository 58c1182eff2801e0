"""Peers of our service, as people would write them themselves: servers of the same model, measured beside it."""
