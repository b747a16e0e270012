"""Networks that judge samples and learn beside the map, one per file."""
