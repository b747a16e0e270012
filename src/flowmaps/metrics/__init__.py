"""Measures of a flow map and of its samples, one per file."""
