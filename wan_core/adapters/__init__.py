"""Modules outside the base transformer, one file each: VACE, S2V, Animate, camera, control."""
