"""Datasets that yield (data, label), one per file."""
