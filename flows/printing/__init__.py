"""What the commands print, and the summaries that it is printed from."""
