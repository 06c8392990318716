"""Prompt cleaning, as the official code does it before the tokenizer.

Source: Wan-Video/Wan2.2 wan/modules/tokenizers.py at 42bf4cf ("whitespace" cleaning).
"""

from __future__ import annotations

import html
import re
import unicodedata

try:
    import ftfy
except ImportError:  # ComfyUI does not bring it; requirements.txt does
    ftfy = None

HAS_FTFY = ftfy is not None


def clean(text: str) -> str:
    """Repairs broken encodings, resolves HTML entities (doubly escaped ones too) and collapses whitespace.

    Without ftfy only Unicode is normalised (NFC): text without mojibake, ligatures and curly quotes comes out the same.
    """
    text = ftfy.fix_text(text) if ftfy is not None else unicodedata.normalize("NFC", text)
    text = html.unescape(html.unescape(text)).strip()
    return re.sub(r"\s+", " ", text).strip()
