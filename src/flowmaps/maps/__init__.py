"""Ways of writing a flow map with a network, one per file."""
