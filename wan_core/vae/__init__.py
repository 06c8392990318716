"""Pixels to latents and back: the causal video VAEs."""
