"""Benchmarks: methods side by side, on the same work, against exact maps."""
