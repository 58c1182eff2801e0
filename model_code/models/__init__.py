"""Nothing but networks."""
