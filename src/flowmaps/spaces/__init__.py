"""Where the flow lives, one per file."""
