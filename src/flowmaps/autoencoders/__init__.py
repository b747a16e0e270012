"""Autoencoders among whose latents a flow may live, one per file."""
