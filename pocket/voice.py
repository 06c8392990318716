"""Sounds of the pocket world: voices of syllables, at many pitches and paces (numpy only).

A Voice says what is heard in words and numbers; `speak` makes a batch of them heard. `speak` and `loudness` use only
functions that numpy and torch share, as world.render does: pass `xp=torch` and a `Score` of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

import numpy as np

RATE = 16_000  # samples per second
FRAME_RATE = 16  # frames per second of the clips that voices are heard with
FRAME = RATE // FRAME_RATE  # samples
PITCHES = {"low": (90.0, 130.0), "middle": (130.0, 190.0), "high": (190.0, 280.0), "child": (280.0, 400.0)}  # Hz
PACES = {"slow": (0.9, 1.2), "calm": (1.2, 1.6), "quick": (1.6, 2.1)}  # syllables per second
TIMBRES = {  # tilt of the harmonics (power of their number), strength of the formants, share of breath
    "voice": (1.0, 1.0, 0.05),
    "hum": (2.2, 0.2, 0.02),
    "reed": (0.6, 0.4, 0.02),
    "whisper": (1.0, 1.0, 0.9),
}
VOWELS = ((730.0, 1090.0), (530.0, 1840.0), (270.0, 2290.0), (570.0, 840.0), (300.0, 870.0))  # first two formants, Hz
HARMONICS = 16
FORMANT_WIDTH = 220.0  # Hz
SYLLABLES = 32  # most in a voice
PAUSE = 0.18  # share of the syllables that are silent
FLOOR = 0.004  # noise under everything, of full scale
FULL = 2.0  # loudness at which a mouth is open all the way


@dataclass(frozen=True)
class Voice:
    """One sound. Times in seconds."""

    pitch: str
    pace: str
    timbre: str
    hertz: float
    gain: float  # largest amplitude, of full scale
    starts: tuple[float, ...]
    lengths: tuple[float, ...]
    levels: tuple[float, ...]  # 0..1; 0 is a pause
    vowels: tuple[int, ...]

    @property
    def triple(self) -> tuple[int, int, int]:
        """Indices of pitch, pace and timbre: what the held-out combinations are made of."""
        return list(PITCHES).index(self.pitch), list(PACES).index(self.pace), list(TIMBRES).index(self.timbre)


def is_held_out(voice: Voice) -> bool:
    """A quarter of the combinations of pitch, pace and timbre is never trained on; each single value is."""
    return sum(voice.triple) % 4 == 3


def draw_voice(rng: np.random.Generator, seconds: float, *, held_out: bool = False) -> Voice:
    """Draws a voice that speaks for so long, of the training combinations or of the held-out ones."""
    while True:
        pitch, pace, timbre = (str(rng.choice(list(values))) for values in (PITCHES, PACES, TIMBRES))
        rate = float(rng.uniform(*PACES[pace]))
        starts, lengths, levels = [], [], []
        now = float(rng.uniform(-1, 0.5)) / rate  # in the middle of a syllable, as often as not
        while now < seconds and len(starts) < SYLLABLES:
            length = float(rng.uniform(0.8, 1.2)) / rate
            starts.append(now)
            lengths.append(length)
            levels.append(0.0 if rng.uniform() < PAUSE and len(starts) > 1 else float(rng.uniform(0.35, 1.0)))
            now += length
        voice = Voice(
            pitch,
            pace,
            timbre,
            float(rng.uniform(*PITCHES[pitch])),
            float(rng.uniform(0.1, 0.9)),
            tuple(starts),
            tuple(lengths),
            tuple(levels),
            tuple(int(vowel) for vowel in rng.integers(len(VOWELS), size=len(starts))),
        )
        if is_held_out(voice) == held_out:
            return voice


@dataclass(frozen=True)
class Score:
    """B voices as arrays: what `speak` plays from. K is the most syllables of a voice."""

    hertz: Any  # [B]
    gain: Any  # [B]
    tilt: Any  # [B]
    formants: Any  # [B] strength
    breath: Any  # [B]
    starts: Any  # [B, K]
    lengths: Any  # [B, K]
    levels: Any  # [B, K]
    vowels: Any  # [B, K, 2] Hz

    def rows(self, index: Any) -> Score:
        """The voices that `index` selects."""
        return Score(*(getattr(self, field.name)[index] for field in fields(self)))


def score(voices: Sequence[Voice]) -> Score:
    """Voices -> numpy arrays, float32."""

    def column(values: Sequence[float]) -> np.ndarray:
        return np.asarray(values, dtype=np.float32)

    def syllables(name: str, rest: float) -> np.ndarray:
        rows = [[*getattr(voice, name), *[rest] * (SYLLABLES - len(voice.starts))] for voice in voices]
        return np.asarray(rows, dtype=np.float32)

    vowels = syllables("vowels", 0).astype(np.int64)
    timbres = [TIMBRES[voice.timbre] for voice in voices]
    return Score(
        hertz=column([voice.hertz for voice in voices]),
        gain=column([voice.gain for voice in voices]),
        tilt=column([timbre[0] for timbre in timbres]),
        formants=column([timbre[1] for timbre in timbres]),
        breath=column([timbre[2] for timbre in timbres]),
        starts=syllables("starts", 1e3),
        lengths=syllables("lengths", 1.0),
        levels=syllables("levels", 0.0),
        vowels=np.asarray(VOWELS, dtype=np.float32)[vowels],
    )


def speak(voices: Score, noise: Any, xp: ModuleType = np) -> Any:
    """Plays B voices -> samples [B, N] in -1..1; `noise` [B, N] is normal noise for their breath."""
    time = (xp.cumsum(xp.ones_like(noise[0]), 0) - 1) / RATE
    envelope, first, second = (xp.zeros_like(noise) for _ in range(3))
    for number in range(voices.starts.shape[1]):
        part = (time[None] - voices.starts[:, number, None]) / voices.lengths[:, number, None]
        inside = (part >= 0) & (part < 1)
        swell = xp.sin(np.pi * xp.clip(part, 0, 1)) ** 2 * voices.levels[:, number, None]
        envelope = envelope + xp.where(inside, swell, xp.zeros_like(swell))
        first = xp.where(inside, voices.vowels[:, number, :1], first)
        second = xp.where(inside, voices.vowels[:, number, 1:], second)
    turns = 2 * np.pi * voices.hertz[:, None] * time[None]
    turns = turns + 0.3 * xp.sin(2 * np.pi * 5.0 * time)[None]  # vibrato
    tone = xp.zeros_like(noise)
    for harmonic in range(1, HARMONICS + 1):
        at = harmonic * voices.hertz[:, None]
        colour = sum(xp.exp(-(((at - place) / FORMANT_WIDTH) ** 2)) for place in (first, second))
        strength = (1 + 4 * voices.formants[:, None] * colour) * harmonic ** -voices.tilt[:, None]
        tone = tone + strength * xp.sin(harmonic * turns) * (at < 0.45 * RATE)
    tone = tone / (tone**2).mean(1)[:, None] ** 0.5
    breath = voices.breath[:, None]
    sound = envelope * ((1 - breath) * tone + breath * noise)
    peak = xp.amax(xp.abs(sound), 1)[:, None]
    return voices.gain[:, None] * (sound / (peak + 1e-6) + FLOOR * noise)


def loudness(sound: Any, frames: int, xp: ModuleType = np) -> Any:
    """Samples [B, N] -> loudness [B, frames]: root mean square of two frames' time around each, over the whole's."""
    power = sound[:, : frames * FRAME] ** 2
    halves = power.reshape(len(sound), 2 * frames, FRAME // 2).mean(2)
    nothing = xp.zeros_like(halves[:, :1])
    halves = xp.concatenate([nothing, halves, nothing], 1)
    windows = sum(halves[:, k : k + 2 * frames : 2] for k in range(4)) / 4
    return (windows / (power.mean(1)[:, None] + 1e-9)) ** 0.5


def opening(loud: Any, xp: ModuleType = np) -> Any:
    """Loudness -> how far a mouth is open, 0..1."""
    return xp.clip(loud / FULL, 0.0, 1.0)
