"""The client of the service; it also gives the command its `predict` and `feedback`."""
