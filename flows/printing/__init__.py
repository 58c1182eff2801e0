"""Output of the commands, and the summaries that it is printed from."""
