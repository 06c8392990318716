"""Prompt to context: cleaning, sentencepiece tokens, UMT5 encoder."""
