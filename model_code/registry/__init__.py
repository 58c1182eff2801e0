"""Registered versions and their aliases."""
