"""What a run did when: nodes as they start, forwards as they end, memory and transfers of each."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from . import ram
from .link import Link

PHASES = {
    "WanCoreLoadModels": "load",
    "WanCoreLoadAudioEncoder": "load",
    "WanCoreLoadClipVision": "load",
    "UNETLoader": "load",
    "CLIPLoader": "load",
    "VAELoader": "load",
    "WanCoreTextEncode": "text encode",
    "CLIPTextEncode": "text encode",
    "WanCoreImageToVideo": "VAE encode",
    "WanCoreSoundToVideo": "VAE encode",
    "WanCoreAnimateToVideo": "VAE encode",
    "WanImageToVideo": "VAE encode",
    "Wan22ImageToVideoLatent": "VAE encode",
    "WanCoreKSampler": "sampling",
    "KSamplerAdvanced": "sampling",
    "WanCoreVAEDecode": "VAE decode",
    "VAEDecode": "VAE decode",
    "WanCoreSaveVideo": "save",
    "SaveVideo": "save",
}


@dataclass
class Phase:
    """One stretch of a run."""

    name: str
    start: float  # seconds since the epoch
    stop: float = 0.0
    allocated: float = 0.0  # GiB that PyTorch held at most
    ram: float = 0.0  # GiB of this process's own memory at most
    sent: float = 0.0  # GB over the link
    rate: float = 0.0  # GB/s of it
    disk: float = 0.0  # GB read from the disk; until its end, the bytes that were read before it
    pinned: list[float] = field(default_factory=list)  # GiB of each loaded model's copies in RAM, at its end
    vram: float = 0.0  # GiB of the card in use at most, filled in by the parent


@dataclass
class Watch:
    """Listens to a run."""

    prompt: dict[str, Any]
    link: Link | None
    phases: list[Phase] = field(default_factory=list)
    forwards: list[dict[str, Any]] = field(default_factory=list)
    peak: ram.Peak = field(default_factory=ram.Peak)

    def heard(self, event: str, data: dict[str, Any]) -> None:
        if event != "executing" or data.get("node") is None:
            return
        kind = self.prompt[data["node"]]["class_type"]
        self.begin(PHASES.get(kind, "other"))

    def begin(self, name: str) -> None:
        """Ends the phase under way; phases of one name in a row are one."""
        if self.phases and self.phases[-1].name == name and not self.phases[-1].stop:
            return
        self.end()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.peak.take()
        self.phases.append(Phase(name, time.time(), disk=ram.read()))

    def end(self) -> None:
        if not self.phases or self.phases[-1].stop:
            return
        phase = self.phases[-1]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            phase.allocated = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        phase.stop, phase.ram = time.time(), round(self.peak.take() / 2**30, 2)
        phase.disk, phase.pinned = round((ram.read() - phase.disk) / 1e9, 2), ram.pinned()
        if self.link is not None:
            sent = self.link.take()
            phase.sent, phase.rate = round(sent.bytes / 1e9, 3), round(sent.rate, 2)

    def around_forwards(self) -> None:
        """Notes the end of every forward of a diffusion model, and the time between its first block and its last one.

        The GPU is waited for at each of these.
        """
        import comfy.model_base

        original = comfy.model_base.BaseModel.apply_model
        marks: dict[str, float] = {}

        def mark(name: str) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            marks[name] = time.time()

        def apply_model(model: Any, *args: Any, **kwargs: Any) -> Any:
            start, disk, sent = time.time(), ram.read(), 0 if self.link is None else self.link.count
            blocks = getattr(model.diffusion_model, "blocks", None)
            hooks = []
            if blocks is not None:
                hooks.append(blocks[0].register_forward_pre_hook(lambda *_: mark("first")))
                hooks.append(blocks[-1].register_forward_hook(lambda *_: mark("last")))
            try:
                out = original(model, *args, **kwargs)
                mark("end")
            finally:
                for hook in hooks:
                    hook.remove()
            sent = 0 if self.link is None else self.link.count - sent
            self.forwards.append(
                {
                    "model": id(model),
                    "start": start,
                    "stop": marks["end"],
                    "blocks": marks["last"] - marks["first"] if hooks else 0.0,
                    "sent": sent / 1e9,
                    "ram": ram.own() / 2**30,
                    "disk": (ram.read() - disk) / 1e9,
                }
            )
            return out

        comfy.model_base.BaseModel.apply_model = apply_model
