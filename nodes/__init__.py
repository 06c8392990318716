"""The nodes: one file per family, each with a list `NODES`. Widgets go in, one call is made, outputs come back.

Nothing is imported here: the bridge says whether ComfyUI is new enough before any node is touched.
"""
