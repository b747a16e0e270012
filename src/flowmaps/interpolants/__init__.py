"""Paths from source to data, one per file."""
