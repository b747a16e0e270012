"""Ways of weighting the error of a sample, one per file."""
