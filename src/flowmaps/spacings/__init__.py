"""How far apart two neighbouring times are, one spacing per file."""
