"""Noise to latent: sigma schedules and the official solvers."""
