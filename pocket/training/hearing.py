"""The miniature wav2vec2: its layers as training computes them, and what trains it.

B sounds, N samples, n features of a sound (50 per second), S their width. Names and arithmetic are those of
wav2vec2-large, whose last layers and copies of channels are not held: models.completed adds them. It learns to tell how
loud a sound is at every moment, how high, and which vowel is heard.
Source: transformers models/wav2vec2/modeling_wav2vec2.py (feature_extractor_norm "layer", do_stable_layer_norm).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...wan_core.audio.buckets import buckets, resampled
from ...wan_core.audio.clips import LEAD_IN
from ..family import AUDIO_ENCODER, SOUND_DIM, SOUND_LAYERS
from ..voice import FRAME, FRAME_RATE, RATE, VOWELS, Score, speak
from .loop import Plan, Stage

HEARD_LAYERS = 24  # of wav2vec2-large; the miniature's after the first ones change nothing
CHANNELS = 32  # of the convolutions, each of which stands for 16
CONVOLUTIONS = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))  # kernel, stride
HEAD = 64
STEP, FIELD = 320, 400  # samples from one feature to the next, and that one is made from
WINDOW = 2 * FRAME  # samples over which loudness is measured
LENGTHS = (51, 124)  # frames of the sounds that it is trained on
BATCH_FRAMES = 6_000
STEPS = 600
RATES = 2e-3, 2e-3  # learning rate of Adam, of Muon


class _Convolution(nn.Module):
    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, CHANNELS, kernel, stride)
        self.layer_norm = nn.LayerNorm(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.layer_norm(self.conv(x).mT).mT)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(SOUND_DIM, SOUND_DIM) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(2, (-1, HEAD)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(SOUND_DIM, 4 * SOUND_DIM)
        self.output_dense = nn.Linear(4 * SOUND_DIM, SOUND_DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_dense(F.gelu(self.intermediate_dense(x)))


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.feed_forward = _Attention(), _FeedForward()
        self.layer_norm, self.final_layer_norm = nn.LayerNorm(SOUND_DIM), nn.LayerNorm(SOUND_DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.layer_norm(x))
        return x + self.feed_forward(self.final_layer_norm(x))


class _FeatureExtractor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = [(1, *CONVOLUTIONS[0]), *((CHANNELS, *each) for each in CONVOLUTIONS[1:])]
        self.conv_layers = nn.ModuleList(_Convolution(*size) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.conv_layers:
            x = layer(x)
        return x.mT


class _FeatureProjection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(CHANNELS)
        self.projection = nn.Linear(CHANNELS, SOUND_DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.layer_norm(x))


class _Places(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.Conv1d(SOUND_DIM, SOUND_DIM, 128, padding=64, groups=16)
        nn.init.normal_(layer.weight, std=0.02)
        self.conv = nn.utils.parametrizations.weight_norm(layer, dim=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.conv(x.mT)[:, :, :-1]).mT


class _Encoder(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.pos_conv_embed = _Places()
        self.layers = nn.ModuleList(_Layer() for _ in range(layers))
        self.layer_norm = nn.LayerNorm(SOUND_DIM)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [x + self.pos_conv_embed(x)]
        for layer in self.layers:
            found.append(layer(found[-1]))
        return [*found, self.layer_norm(found[-1])]


class Ears(nn.Module):
    """wav2vec2 with the layers that do something."""

    def __init__(self, layers: int = SOUND_LAYERS) -> None:
        super().__init__()
        self.masked_spec_embed = nn.Parameter(torch.zeros(SOUND_DIM))
        self.feature_extractor = _FeatureExtractor()
        self.feature_projection = _FeatureProjection()
        self.encoder = _Encoder(layers)

    def forward(self, sound: Tensor) -> list[Tensor]:
        """Samples [B, N] -> what enters the first layer, what leaves each, and the last one normed: [B, n, S] each."""
        sound = (sound - sound.mean(1, keepdim=True)) / torch.sqrt(sound.var(1, keepdim=True) + 1e-7)
        return self.encoder(self.feature_projection(self.feature_extractor(sound.unsqueeze(1))))


def layers_heard(layers: int = SOUND_LAYERS) -> list[int]:
    """Which of the outputs of `Ears` each of the 25 layers is that a sound has for the model of clips."""
    return [min(number, layers) for number in range(HEARD_LAYERS)] + [layers + 1]


def led_in(sound: Tensor) -> Tensor:
    """Samples [B, N] with the silence before them that Wan Sound to Video puts there."""
    return F.pad(sound, (LEAD_IN * FRAME, 0))


@torch.no_grad()
def features(ears: Ears, sound: Tensor, frames: int) -> Tensor:
    """Samples [B, N] -> features at each of the frames, [B, outputs of Ears, S, frames]."""
    layers = torch.stack(ears(sound), 1)
    taken = buckets(resampled(layers.flatten(0, 1)), frames).features[:frames]
    return taken.permute(1, 2, 0).unflatten(0, layers.shape[:2])


class Listener(nn.Module):
    """The encoder with the heads that it is trained through: loudness, pitch, one score for each vowel."""

    def __init__(self, ears: Ears) -> None:
        super().__init__()
        self.ears = ears
        self.heads = nn.Linear(SOUND_DIM, 2 + len(VOWELS) + 1)

    def forward(self, sound: Tensor) -> Tensor:
        """[B, N] -> [B, n, heads]"""
        return self.heads(self.ears(sound)[-1])


def loudness_at(sound: Tensor) -> Tensor:
    """Samples [B, N] -> loudness at each feature [B, n], over two frames' time, of the whole sound's."""
    count = (sound.shape[1] - FIELD) // STEP + 1
    before = (WINDOW - FIELD) // 2
    power = F.pad(sound.square(), (before, WINDOW)).unsqueeze(1)
    around = F.avg_pool1d(power, WINDOW, STEP)[:, 0, :count]
    return (around / (sound.square().mean(1, keepdim=True) + 1e-9)).sqrt()


def vowels_at(voices: Score, numbers: Tensor, count: int, lead: float) -> Tensor:
    """Which vowel is heard at each feature [B, n]; the number of vowels where none is."""
    times = (torch.arange(count, device=numbers.device) * STEP + FIELD / 2) / RATE - lead
    parts = (times[None, :, None] - voices.starts[:, None]) / voices.lengths[:, None]
    inside = (parts > 0.1) & (parts < 0.9) & (voices.levels[:, None] > 0)
    which = torch.where(inside, numbers[:, None], -1).amax(2)
    return torch.where(which < 0, len(VOWELS), which)


def stage(listener: Listener, voices: Score, plan: Plan) -> Stage:
    """Squared error of loudness and pitch, cross-entropy of the vowel, at every feature of a sound."""
    table = torch.tensor(VOWELS, device=plan.device)
    numbers = (voices.vowels.unsqueeze(2) == table).all(-1).int().argmax(-1)

    def batch(step: int) -> tuple[Tensor, ...]:
        random = plan.generator(step + 20_000_000)
        frames = LENGTHS[step % len(LENGTHS)]
        count = 2 if plan.smoke else BATCH_FRAMES // frames
        rows = torch.randint(len(voices.hertz), (count,), generator=random, device=plan.device)
        chosen = voices.rows(rows)
        noise = torch.randn((count, frames * FRAME), generator=random, device=plan.device)
        sound = led_in(speak(chosen, noise, torch))
        loud = loudness_at(sound)
        vowels = vowels_at(chosen, numbers[rows], loud.shape[1], LEAD_IN / FRAME_RATE)
        return sound, loud, vowels, torch.log2(chosen.hertz / 200)

    def loss(sound: Tensor, loud: Tensor, vowels: Tensor, pitch: Tensor) -> Tensor:
        told = listener(sound)
        spoken = (vowels < len(VOWELS)).float()
        high = ((told[..., 1] - pitch[:, None]).square() * spoken).mean()
        vowel = F.cross_entropy(told[..., 2:].flatten(0, 1), vowels.flatten())
        return (told[..., 0] - loud).square().mean() + 0.1 * high + 0.1 * vowel

    def is_matrix(name: str, parameter: Tensor) -> bool:
        return parameter.ndim == 2 and ".layers." in name

    return Stage(AUDIO_ENCODER.short, listener, batch, loss, STEPS, *RATES, is_matrix)


@torch.no_grad()
def accuracy(listener: Listener, voices: Score, plan: Plan) -> tuple[float, float]:
    """Of held-out voices: correlation of the told loudness with the true one, and share of the vowels told right."""
    frames, random = LENGTHS[0], plan.generator(21_000_000)
    noise = torch.randn((len(voices.hertz), frames * FRAME), generator=random, device=plan.device)
    sound = led_in(speak(voices, noise, torch))
    told, loud = listener(sound), loudness_at(sound)
    table = torch.tensor(VOWELS, device=plan.device)
    numbers = (voices.vowels.unsqueeze(2) == table).all(-1).int().argmax(-1)
    vowels = vowels_at(voices, numbers, loud.shape[1], LEAD_IN / FRAME_RATE)
    right = (told[..., 2:].argmax(-1) == vowels).float().mean()
    return float(torch.corrcoef(torch.stack([told[..., 0].flatten(), loud.flatten()]))[0, 1]), float(right)
