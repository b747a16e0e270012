"""Ways of going back along a map, one per file."""
