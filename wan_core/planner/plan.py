"""The whole plan of a run, and in words."""

from __future__ import annotations

from dataclasses import dataclass

from ..weights import Checkpoint
from . import memory, pace
from .memory import GIB, Clip, Part, Phase
from .rounding import NODES, NOTHING, InEightBits

GAIN = 0.85  # share of a run's time up to which nodes that shorten it are worth a word
WAITED = 0.1  # share of its transfers that the first forward of an expert waits for; measured: 0.05 to 0.2
# A card without rates: only what was measured on it counts.
UNKNOWN = pace.Rates(100.0, None, 100.0, 100.0, 100.0, 1000.0)


@dataclass(frozen=True)
class Machine:
    """What the plan reads of the machine."""

    card: str = ""  # the GPU's name; empty: none
    vram: float = 0.0  # bytes free for the run
    ram: float = 0.0  # bytes free for the run
    link: float = 25.0  # GB/s from RAM to the GPU
    in_8_bits: InEightBits = NOTHING  # what it has kernels for


@dataclass(frozen=True)
class Run:
    """What is to be run; `low` is None for a model of one expert."""

    high: Part
    clip: Clip
    low: Part | None = None
    text_encoder: Part | None = None
    vae: Part | None = None
    encodes: bool = False  # whether a picture or clip goes through the VAE first
    forwards: tuple[int, int] = (0, 0)  # of the high and the low expert
    there: tuple[float, float] = (0.0, 0.0)  # bytes of each that lie on the GPU when the run begins
    eight_bits: InEightBits = NOTHING

    @property
    def experts(self) -> tuple[Part, ...]:
        return (self.high,) if self.low is None else (self.high, self.low)


@dataclass(frozen=True)
class Faster:
    """What sampling would take with these nodes behind the models."""

    nodes: tuple[str, ...]
    sampling: float  # seconds


@dataclass(frozen=True)
class Plan:
    """What a run needs. Bytes and seconds."""

    phases: tuple[Phase, ...]
    vram: float  # the least that does not fail
    ram: float
    streamed: float  # weights of an expert that go to the GPU in a forward where nothing but the least fits
    sent: float  # what goes there in each forward on this machine
    forward: float | None  # seconds of one forward; None: nothing is known of the card
    sampling: float | None  # of all forwards
    measured: bool  # the time rests on runs on this GPU
    faster: Faster | None = None  # where nodes that the run does without shorten it well

    def report(self, machine: Machine) -> str:
        """Lines for a node or a terminal."""
        fullest = max(self.phases, key=lambda phase: phase.vram)
        lines = [
            f"needs {self.vram / GIB:.1f} GiB of VRAM ({fullest.name}) and {self.ram / GIB:.1f} GiB of RAM at least"
        ]
        lines += [f"{name}: {text}" for name, text in self._lacks(machine)]
        for phase in self.phases:
            if machine.vram and phase.whole > machine.vram:
                lines.append(f"{phase.name}: in tiles, whole frames need {phase.whole / GIB:.1f} GiB of VRAM")
        if machine.card:
            lines.append(f"weights to the GPU in each forward: {self.sent / 1e9:.1f} of {self.streamed / 1e9:.1f} GB")
        if self.forward is not None and self.sampling:
            kind = "measured on this GPU" if self.measured else "an estimate, nothing was measured on this GPU yet"
            lines.append(f"sampling: about {pace.duration(self.sampling)}, {self.forward:.2g} s a forward ({kind})")
        if self.faster is not None:
            nodes = " and ".join(self.faster.nodes)
            lines.append(f"with {nodes}: about {pace.duration(self.faster.sampling)}, an estimate")
        return "\n".join(lines)

    def line(self, machine: Machine) -> str:
        """The same, shorter."""
        text = f"{self.vram / GIB:.1f} GiB of VRAM and {self.ram / GIB:.1f} GiB of RAM at least"
        if self.forward is not None:
            text += f", {'' if self.measured else 'estimated '}{self.forward:.2g} s a forward"
        return "; ".join([text, *(f"{name}: {lack}" for name, lack in self._lacks(machine))])

    def _lacks(self, machine: Machine) -> list[tuple[str, str]]:
        found = []
        for name, needed, there in (("VRAM", self.vram, machine.vram), ("RAM", self.ram, machine.ram)):
            if there and needed > there:
                text = f"only {there / GIB:.1f} GiB are free, the run may fail: take a smaller size or fewer frames"
                found.append((name, text))
        return found


def plan(run: Run, machine: Machine, learned: pace.Pace) -> Plan:
    """Everything that can be said before a weight is read."""
    parts = {"low": run.low, "text_encoder": run.text_encoder, "vae_file": run.vae, "encode": run.encodes}
    phases = memory.phases(run.high, run.clip, **parts, eight_bits=run.eight_bits)
    sent = memory.transfer(run.high, run.clip, machine.vram, run.eight_bits) if machine.card else 0.0
    forward, measured = forward_seconds(run.high.checkpoint, run.clip, machine, learned, run.eight_bits)
    total = faster = None
    if forward is not None:
        alone = forward
        # a block's weights travel while the one before computes; what takes longer decides
        forward = max(alone, sent / machine.link / 1e9)
        total = sum(run.forwards) * forward + first_seconds(run, machine)
        faster = _faster(run, machine, alone, sent, total)
    return Plan(
        phases,
        memory.least_vram(phases),
        memory.least_ram(phases, machine.vram),
        run.high.weights.streamed,
        sent,
        forward,
        total,
        measured,
        faster,
    )


def _faster(run: Run, machine: Machine, forward: float, sent: float, total: float) -> Faster | None:
    """With all that the machine has kernels for; as much faster than `forward` seconds as arithmetic says.

    None where `total` seconds would hardly be fewer.
    """

    def seconds(eight_bits: InEightBits) -> float:
        return expected(run.high.checkpoint, run.clip, machine.card, eight_bits)

    now, possible = seconds(run.eight_bits), run.eight_bits | machine.in_8_bits
    parts = {name: part for name, part in NODES.items() if part | possible == possible}
    nodes = tuple(name for name, part in parts.items() if seconds(run.eight_bits | part) < now)
    forward = max(forward * seconds(possible) / now, sent / machine.link / 1e9)
    sampling = sum(run.forwards) * forward + first_seconds(run, machine)
    return Faster(nodes, sampling) if sampling < GAIN * total else None


def first_seconds(run: Run, machine: Machine) -> float:
    """Seconds that the first forward of each expert takes longer than a later one, with the file's pages in RAM."""
    if not machine.card:
        return 0.0
    parts = zip(run.experts, run.forwards, run.there, strict=False)
    missing = sum(max(0.0, expert.weights.streamed - there) for expert, count, there in parts if count)
    return WAITED * missing / machine.link / 1e9


def forward_seconds(
    checkpoint: Checkpoint, clip: Clip, machine: Machine, learned: pace.Pace, eight_bits: InEightBits = NOTHING
) -> tuple[float | None, bool]:
    """Seconds of one forward with its weights at hand, and whether that was measured here; None: nothing is known."""
    rates = pace.rates_of(machine.card)
    arithmetic = expected(checkpoint, clip, machine.card, eight_bits)
    seconds, measured = learned.seconds(what(checkpoint, eight_bits), arithmetic)
    return (seconds if rates is not None or measured else None), measured


def expected(checkpoint: Checkpoint, clip: Clip, card: str, eight_bits: InEightBits = NOTHING) -> float:
    """Seconds of one forward by arithmetic alone, what measurements are compared with."""
    assert checkpoint.config is not None
    rates = pace.rates_of(card) or UNKNOWN
    needed = pace.work(checkpoint.config, clip.tokens(checkpoint.config), clip.batch)
    return needed.seconds(rates, float8=checkpoint.precision.startswith("fp8"), eight_bits=eight_bits)


def what(checkpoint: Checkpoint, eight_bits: InEightBits = NOTHING) -> str:
    """What a measurement is kept under: one kind of model in one precision."""
    assert checkpoint.config is not None
    told = f"forward, width {checkpoint.config.dim}, {checkpoint.precision} {checkpoint.quantised}".strip()
    return f"{told}{eight_bits}"
