"""Ways of pairing source and data, one per file."""
