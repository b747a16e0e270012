"""The mathematics every method is written in. Imports torch and the standard library, nothing else."""
