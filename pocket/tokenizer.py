"""A sentencepiece vocabulary for the miniature text encoder, trained on the spot.

Ids as in UMT5: pad 0, </s> 1, <unk> 2. Bytes stand in for what the vocabulary lacks, so any language goes in.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable

import sentencepiece
import torch

SUBJECTS = "circle square triangle star ring cross ball box cat dog car bird boat flower robot woman man child".split()
COLOURS = "red green blue yellow orange purple white black pink cyan grey brown golden silver".split()
MOTIONS = "moves slides drifts rolls flies runs walks jumps turns falls rises spins floats swims dances".split()
PLACES = "right left top bottom centre edge corner sky sea forest city street room beach mountain river".split()


def example_sentences() -> Iterable[str]:
    """Plain English that covers the words of simple prompts."""
    for i, colour in enumerate(COLOURS):
        for j, subject in enumerate(SUBJECTS):
            motion, place = MOTIONS[(i + j) % len(MOTIONS)], PLACES[(i * 3 + j) % len(PLACES)]
            yield f"a {colour} {subject} {motion} to the {place}"
            yield f"The {subject} is {colour}. It {motion} slowly from the {place} under soft light, camera still."
            yield f"two {colour} {subject}s over a {COLOURS[(i + j) % len(COLOURS)]} background, wide shot, day"


def train_tokenizer(sentences: Iterable[str], vocabulary: int) -> torch.Tensor:
    """sentences -> serialized sentencepiece model as the uint8 tensor that text encoder files call `spiece_model`.

    It is trained on their words and how often each comes: a piece never spans two of them, and a minute or two of
    sentencepiece 0.2.2's time over whole sentences become milliseconds.
    """
    model, words = io.BytesIO(), Counter(word for sentence in sentences for word in sentence.split())
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(f"{word}\t{count}" for word, count in words.items()),
        input_format="tsv",
        model_writer=model,
        vocab_size=vocabulary,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)
