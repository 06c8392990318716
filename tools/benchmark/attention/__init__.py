"""Attention kernels side by side: run.py starts a process for each of them (child.py) and makes the table."""
