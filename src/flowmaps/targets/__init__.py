"""Which weights a target is made with, one choice per file."""
