"""Weight files: reading headers, telling what a file is, renaming keys."""
