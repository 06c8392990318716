"""Whole graphs on a card that is made small: balloon, capped RAM, slowed link; started by tools/bench_memory.py."""
