"""Pocket Wan: a miniature Wan 2.2 family with the real key names and layouts, for the demo and the tests."""
