"""Limits of packing that users can change. Light: the command line reads them before anything runs."""

# Largest share of a split's images that may not decode and are left out.
MAX_BAD_FRACTION = 0.01
