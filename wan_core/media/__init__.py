"""Frames to files: video encoding and crash-safe writing."""
