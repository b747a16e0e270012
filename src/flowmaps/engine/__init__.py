"""Training: from a table of options to a run folder."""
