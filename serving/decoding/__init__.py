"""Encoded images of strangers -> arrays, in sandboxed processes with limits on time and memory."""
