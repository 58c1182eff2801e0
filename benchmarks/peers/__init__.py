"""What people would write themselves instead of our service: servers of the same model, measured beside it."""
