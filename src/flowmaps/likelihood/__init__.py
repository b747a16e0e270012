"""Log-densities of samples, one method per file."""
