"""A released model: its files, its manifest, the preprocessing of its input, and the session that runs it."""
