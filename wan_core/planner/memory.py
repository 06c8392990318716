"""Least memory of each phase of a run, by arithmetic from the files' headers and the clip's size.

ComfyUI's Dynamic VRAM keeps on the GPU what fits and brings the rest in layer by layer, so that a run needs the
activations, the layers that are fetched at one time, and what never leaves the GPU. The constants are fitted to the
measurements of tests/core/planner_measured.json, which tests/core/test_planner.py compares; docs/memory.md says what
was run and what not.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..config import TransformerConfig
from ..geometry import FRAME_STRIDE, PATCH
from ..weights import Checkpoint
from ..weights.families import TEXT_ENCODER
from .rounding import NOTHING, InEightBits

GIB = 2**30
SMALL_LAYER = 16 * 1024  # bytes: ComfyUI leaves smaller layers on the GPU
HALF, FLOAT = 2, 4  # bytes of bfloat16 and float16, of float32

CONTEXT = 0.68 * GIB  # CUDA's context, cuBLAS, cuDNN and Triton's kernels
LIBRARIES = 0.19 * GIB  # more of it where cuDNN's convolutions are loaded
BESIDE = 0.2 * GIB  # of a run: texts, conditionings, pages with other models' small layers
EDGES = 0.52 * GIB  # of the card that holds neither weights nor tokens: pages with a part of a layer, conditionings
IN_FLIGHT = 2  # blocks of a transformer that are there at one time: the one that computes and the next
FETCHED = 1.5  # of a text encoder and a VAE, whose layers come one by one
FIXED = 0.1 * GIB  # of a forward, whatever the clip: workspaces, time embedding
HELD = 3.85  # tensors of all tokens, two bytes a value, in a block beside the feed-forward's hidden ones
HELD_SPARING = 5.05  # where the feed-forward takes its tokens in parts: in the attention, its result among them
HELD_EIGHT_BITS = 1.5  # queries, keys and values once more, where the attention takes them in 8 bits
HELD_MORE = {"vace_dim": 2.7, "audio_dim": 2.5, "pose_dim": 2.6}  # for what adapters add to the blocks
GAPS = 0.7  # more that fit into no gap of PyTorch's memory
GAPS_EIGHT_BITS = 0.3  # where the attention takes them in 8 bits, which fit into some
LATENTS = 12  # in float32: noise, conditionings, both prompts' answers, those that the solver remembers
ROOM = 3.1  # times the activations: what PyTorch keeps of them between two layers, ComfyUI counts as taken
ROOM_SPARING = 2.25  # where weights come and go, which then take what is left
ROOM_FIXED = 0.54 * GIB  # of both
DECODED = 2  # matrices of the size of the largest that is decoded, kept between the tokens
TURNED = 2  # of float8 for int8: as they are and scaled
TEXT_WORKING = 0.3 * GIB  # 512 tokens in UMT5-XXL
TOKEN_TABLES = ("shared.", "token_embedding.", "token_embd.", "encoder.embed_tokens.")  # looked up in RAM
BLOCK = re.compile(r"(?:blocks|encoder\.block|enc\.blk)\.\d+\.")  # of a model, of UMT5 in its spellings
LEAST_TILE = 256  # pixels: side of the smallest tile of a VAE
TILE_GAPS = 1.4  # times what decoding one takes: PyTorch's memory is in pieces by then
TILING = 0.87 * GIB  # RAM of decoding in tiles beside the clip: copies of layers, frames on their way
OVERLAP = 64  # pixels that tiles share
PROCESS = 0.85 * GIB  # RAM of Python, PyTorch and ComfyUI; pages of files not among it, which the system takes back
PINNED = 1.3 * GIB  # RAM that layers pass through on their way to the GPU


@dataclass(frozen=True)
class Weights:
    """A file as ComfyUI brings it to the GPU. All in bytes."""

    total: int
    kept: int  # small layers and bare parameters, which stay
    fetched: int  # the largest block, or the largest layer outside the blocks
    decoded: int  # the largest matrix as a layer multiplies it, where that is not how it is stored

    @property
    def streamed(self) -> int:
        """What goes to the GPU in every forward where nothing but the least fits."""
        return self.total - self.kept

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Weights:
        """Reads the sizes off a header; the tables of a text encoder never go to the GPU."""
        layers: dict[str, int] = defaultdict(int)
        units: dict[str, int] = defaultdict(int)
        kept = total = decoded = 0
        bare: list[int] = []
        for name, official in checkpoint.names.items():
            if checkpoint.kind == TEXT_ENCODER and official.startswith(TOKEN_TABLES):
                continue
            entry = checkpoint.header.tensors[name]
            size = entry.end - entry.start
            total += size
            layer, _, leaf = official.rpartition(".")
            if leaf in ("weight", "bias") or leaf.startswith(("weight_", "scale_", "input_")):
                layers[layer] += size
            else:
                bare.append(size)
            if leaf == "weight" and len(entry.shape) == 2:
                in_half = HALF * entry.count
                decoded = max(decoded, in_half if in_half > size else 0)
        for layer, size in layers.items():
            if size <= SMALL_LAYER:
                kept += size
                continue
            block = BLOCK.match(layer)
            units[block[0] if block else layer] += size
        return cls(total, kept + sum(bare), max(units.values(), default=0), decoded)


@dataclass(frozen=True)
class Part:
    """A file of a run, and what it weighs: read off its header once, for every size that is planned with it."""

    checkpoint: Checkpoint
    weights: Weights

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Part:
        return cls(checkpoint, Weights.of(checkpoint))

    @property
    def config(self) -> TransformerConfig:
        """Of a diffusion model."""
        assert self.checkpoint.config is not None
        return self.checkpoint.config


@dataclass(frozen=True)
class Clip:
    """What is to be made."""

    width: int
    height: int
    frames: int
    batch: int = 1

    def latent(self, compression: int) -> tuple[int, int, int]:
        """Latent frames, rows and columns; `compression` is pixels to a latent row."""
        frames = 1 + (self.frames - 1) // FRAME_STRIDE
        return frames, math.ceil(self.height / compression), math.ceil(self.width / compression)

    def tokens(self, config: TransformerConfig) -> int:
        """Tokens of one forward, those of token groups among them."""
        return tokens_of(config, *self.latent(compression_of(config.out_dim)))


def tokens_of(config: TransformerConfig, frames: int, rows: int, columns: int) -> int:
    """Tokens of a latent of this size in one forward, those of token groups among them."""
    extra = 1.0 if config.reference_dim else 0.0
    if config.audio_dim:  # the reference picture, and 19 motion latents packed into 1.5 frames
        extra += 2.5
    return round(math.ceil(rows / PATCH) * math.ceil(columns / PATCH) * (frames + extra))


def compression_of(latent_channels: int) -> int:
    """Pixels to a latent row: 8 of VAE 2.1, 16 of VAE 2.2."""
    return 16 if latent_channels == 48 else 8


@dataclass(frozen=True)
class Phase:
    """One phase of a run: the least that it does with, in bytes."""

    name: str
    vram: float
    ram: float
    whole: float = 0.0  # VRAM with which a VAE takes whole frames; with less it takes tiles
    canvas: float = 0.0  # RAM that these are joined in


def activations(
    config: TransformerConfig, tokens: int, *, sparing: bool, gaps: float = 0.0, eight_bits: InEightBits = NOTHING
) -> float:
    """Bytes of a batch's tokens at the fullest moment of a block; sparing: the feed-forward takes them in parts.

    `gaps` are counted in tensors of all tokens.
    """
    held = HELD_SPARING + HELD_EIGHT_BITS * eight_bits.attention
    if not sparing:
        held = max(held, HELD + config.ffn_dim / config.dim)
    held += sum(more for size, more in HELD_MORE.items() if getattr(config, size))
    return FIXED + (held + gaps) * tokens * config.dim * HALF


def latents(config: TransformerConfig, tokens: int) -> float:
    """Bytes of the latents that a run keeps beside the tokens."""
    return LATENTS * FLOAT * config.out_dim * math.prod(config.patch_size) * tokens


@dataclass(frozen=True)
class Residence:
    """What stays on the GPU while a model samples."""

    weights: float  # bytes
    working: float  # bytes beside them
    sparing: bool  # whether activations are to take less, so that more weights stay


def residence(
    config: TransformerConfig,
    tokens: int,
    *,
    size: float,
    fetched: float,
    free: float,
    eight_bits: InEightBits = NOTHING,
) -> Residence:
    """How many of `size` bytes of weights stay where `free` bytes are there for them and all that works with them.

    `fetched` bytes are those that are on their way for the blocks that compute and come next.
    """
    working = ROOM_FIXED + ROOM * activations(config, tokens, sparing=False, eight_bits=eight_bits)
    if size + working <= free:
        return Residence(size, working, sparing=False)
    working = ROOM_FIXED + ROOM_SPARING * activations(config, tokens, sparing=True, eight_bits=eight_bits) + fetched
    return Residence(min(size, max(0.0, free - working)), working, sparing=True)


def sampling(model: Part, clip: Clip, eight_bits: InEightBits = NOTHING) -> Phase:
    """The forwards of one expert, one prompt after the other."""
    tokens, weights = clip.tokens(model.config) * clip.batch, model.weights
    gaps = GAPS_EIGHT_BITS if eight_bits.attention else GAPS
    working = activations(model.config, tokens, sparing=True, gaps=gaps, eight_bits=eight_bits)
    working += latents(model.config, tokens)
    if model.checkpoint.in_blocks:
        working += DECODED * weights.decoded
    elif eight_bits.layers:
        working += TURNED * weights.decoded
    needed = CONTEXT + BESIDE + weights.kept + IN_FLIGHT * weights.fetched + working
    return Phase("sampling", needed, PROCESS + PINNED)


def text_encode(text_encoder: Part) -> Phase:
    """A prompt through UMT5."""
    weights = text_encoder.weights
    needed = CONTEXT + TEXT_WORKING + weights.kept + FETCHED * weights.fetched
    return Phase("text encode", needed, PROCESS + PINNED)


@dataclass(frozen=True)
class Working:
    """Bytes that a VAE works in, per pixel of a frame."""

    encode: float
    decode: float


VAE_WORKING = {8: Working(5800.0, 7000.0), 16: Working(4500.0, 6400.0)}  # by pixels to a latent row


def vae(file: Part, clip: Clip, *, encode: bool) -> Iterator[Phase]:
    """Encoding a picture or clip, where there is one, and decoding; whole frames, without tiles."""
    compression = compression_of(file.checkpoint.width or 16)
    working, pixels = VAE_WORKING[compression], clip.width * clip.height
    frames = 3 * pixels * clip.frames * clip.batch  # bytes of the finished clip
    least, all_there = min(pixels, LEAST_TILE**2), CONTEXT + LIBRARIES + file.weights.total
    streaming = CONTEXT + LIBRARIES + file.weights.kept + FETCHED * file.weights.fetched
    if encode:
        whole = all_there + working.encode * pixels
        yield Phase("VAE encode", streaming + working.encode * least, PROCESS + 4 * frames, whole)
    whole = all_there + working.decode * pixels
    needed = streaming + TILE_GAPS * working.decode * least
    yield Phase("VAE decode", needed, PROCESS + 2 * frames, whole, HALF * frames / clip.batch + TILING)


def tile(width: int, height: int, compression: int, room: float) -> tuple[int, int]:
    """Width and height in pixels of the largest tiles that a VAE decodes in `room` bytes: parts of the frame, halved
    along the longer side as often as needed, at least once where the frame is larger than the least tile."""
    size = [width, height]
    working = VAE_WORKING[compression].decode
    split = False
    while max(size) > LEAST_TILE and (not split or working * size[0] * size[1] > room):
        longer = size.index(max(size))
        half = math.ceil((size[longer] + OVERLAP) / 2 / compression) * compression
        size[longer], split = max(LEAST_TILE, half), True
    return size[0], size[1]


def phases(
    high: Part,
    clip: Clip,
    *,
    low: Part | None = None,
    text_encoder: Part | None = None,
    vae_file: Part | None = None,
    encode: bool = False,
    eight_bits: InEightBits = NOTHING,
) -> tuple[Phase, ...]:
    """All phases of a run, in order."""
    found = [text_encode(text_encoder)] if text_encoder else []
    around = list(vae(vae_file, clip, encode=encode)) if vae_file else []
    found += around[:-1]
    found += [sampling(expert, clip, eight_bits) for expert in (high, low) if expert is not None]
    beside = vae_file.weights.total if vae_file else 0.0  # a VAE's weights are copied, those of the others mapped
    return tuple(replace(phase, ram=phase.ram + beside) for phase in (*found, *around[-1:]))


def least_vram(found: tuple[Phase, ...]) -> float:
    """Bytes with which every phase runs, VAEs in tiles."""
    return max(phase.vram for phase in found)


def least_ram(found: tuple[Phase, ...], vram: float = 0.0) -> float:
    """Bytes with which every phase runs, the operating system's own not among them; `vram` is free (0: enough)."""
    return max(phase.ram + (phase.canvas if 0 < vram < phase.whole else 0.0) for phase in found)


def transfer(model: Part, clip: Clip, vram: float, eight_bits: InEightBits = NOTHING) -> float:
    """Bytes that go to the GPU in each forward from the second on, with so many bytes of the card free at the start.

    In the first one all of them go there but those that still lie there.
    """
    weights, tokens = model.weights, clip.tokens(model.config) * clip.batch
    free = vram - CONTEXT - EDGES - weights.kept
    size, fetched = weights.streamed, IN_FLIGHT * weights.fetched
    stay = residence(model.config, tokens, size=size, fetched=fetched, free=free, eight_bits=eight_bits)
    return size - stay.weights
