"""The parts of the service's benchmark: who is measured, by which load, and how it is shown."""
