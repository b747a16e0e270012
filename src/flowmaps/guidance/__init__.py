"""Maps that steer a map, one per file."""
