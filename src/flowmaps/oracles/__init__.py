"""Flows in closed form: the truth that every method is tested against, and teachers that make no error."""
