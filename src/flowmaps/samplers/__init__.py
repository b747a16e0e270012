"""Ways of going from one time to the next, one per file."""
