"""Ways of taming a correction, one per file."""
