"""The models that answer: found, loaded, exchanged while the service runs, and run in batches."""
