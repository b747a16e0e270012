"""Where the velocity of a target comes from, one source per file."""
