"""Laws of the training times, one per file."""
