"""Ways of taking a derivative, one per file."""
