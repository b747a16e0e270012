"""Distances between prediction and target, one per file."""
