"""How Pocket Wan was trained; run by tools/train_pocket.py, never by the pack."""
