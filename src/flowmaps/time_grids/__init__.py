"""Grids of times to sample on, one per file."""
