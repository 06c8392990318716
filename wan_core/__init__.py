"""Wan 2.x in plain PyTorch: transformer, text encoder, VAE, solvers, weights. Knows nothing of ComfyUI."""
