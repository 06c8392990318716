"""LATENT to clips: decoded in chunks of frames, which become a VIDEO of bytes and, if somebody asks, a float IMAGE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import torch
from comfy.model_management import intermediate_device

from ...wan_core import geometry
from ...wan_core.errors import InputError, WrongModelError
from ...wan_core.long_video import JUMP, SeamMeter
from ...wan_core.weights.downloads import with_address
from ...wan_core.weights.pairing import VAE_FILES
from .clips import CLIPS, ClipPlan
from .decoding import decode_chunks
from .latents import FRAME_RATE, LatentGrid, grid_of, without_references
from .progress import progress
from .show import show_on_node
from .soundness import check_vae
from .video import ByteVideo, FrameVideo, StreamedVideo, to_bytes


def decode_clips(
    latent: dict[str, Any],
    vae: Any,
    audio: dict[str, Any] | None,
    *,
    with_images: bool,
    node_id: str | None = None,
) -> tuple[Sequence[ByteVideo], torch.Tensor | None]:
    """Decodes a LATENT to one VIDEO per clip of the batch and, if asked for, all frames as a float IMAGE.

    Frames arrive in chunks and are kept as bytes: without the IMAGE the clip is never whole in float. A video of
    several clips is never whole at all: it is decoded while it is saved. How well its clips join is then said on the
    node.

    Raises:
        WrongModelError: the VAE makes other latents than these.
        InputError: the latent holds values that are not finite.
    """
    samples = _checked(without_references(latent), grid_of(vae))
    rate = Fraction(latent.get(FRAME_RATE) or grid_of(vae).frame_rate).limit_denominator(1001)
    plan: ClipPlan | None = latent.get(CLIPS)
    frames = plan.length(samples) if plan else 1 + (samples.shape[2] - 1) * geometry.FRAME_STRIDE
    if plan:
        plan.warn_of_missing(samples)
        if len(plan.parts(samples)) > 1 and not with_images:
            sources = [_Joined(plan, vae, samples, item, node_id) for item in range(len(samples))]
            return [StreamedVideo(source, *source.shape, rate, audio) for source in sources], None
    show = progress(frames * samples.shape[0])
    images = _Store(frames * samples.shape[0]) if with_images else None
    videos = []
    for number, item in enumerate(samples.split(1)):
        clip = _Store(frames)
        chunks = _Joined(plan, vae, samples, number, node_id)() if plan else decode_chunks(vae, item, stay=True)
        for chunk in chunks if plan else _finite(chunks, vae):
            clip.add(to_bytes(chunk))
            if images:
                images.add(chunk.float())
            show(len(videos) * frames + clip.used)
        videos.append(FrameVideo(clip.frames(), rate, audio))
    return videos, images.frames().to(intermediate_device()) if images else None


class _Joined:
    """The frames of one item of the batch out of all its clips; says on the node how well they join."""

    def __init__(self, plan: ClipPlan, vae: Any, samples: torch.Tensor, item: int, node_id: str | None) -> None:
        self.plan, self.vae, self.samples, self.item, self.node_id = plan, vae, samples, item, node_id

    @property
    def shape(self) -> tuple[geometry.Size, int]:
        """Size (width, height) in pixels and number of frames."""
        scale = grid_of(self.vae).compression
        rows, columns = self.samples.shape[-2:]
        return (columns * scale, rows * scale), self.plan.length(self.samples)

    def __call__(self) -> Iterator[torch.Tensor]:
        meter = SeamMeter(self.plan.seams(self.samples))
        for chunk in _finite(self.plan.decode(self.vae, self.samples, self.item), self.vae):
            meter.add(chunk)
            yield chunk
        if scores := meter.finish():
            show_on_node(self.node_id, seam_text(scores, self.plan.part))


def seam_text(scores: Sequence[float], part: str) -> str:
    """ "seams, 1 is as smooth as the rest: segment 2: 1.1, segment 3: 2.4 (a jump: try another seed for it)"."""
    lines = [
        f"{part} {number}: {score:.1f}" + (" (a jump: try another seed for it)" if score >= JUMP else "")
        for number, score in enumerate(scores, 2)
    ]
    return "\n".join(["seams, 1 is as smooth as the rest:", *lines])


class _Store:
    """Frames gathered chunk by chunk in one tensor on the CPU, so that they never exist twice."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.used = capacity, 0
        self.tensor = torch.empty(0)

    def add(self, chunk: torch.Tensor) -> None:
        if self.used == 0:
            self.tensor = torch.empty((self.capacity, *chunk.shape[1:]), dtype=chunk.dtype)
        self.tensor[self.used : self.used + len(chunk)] = chunk
        self.used += len(chunk)

    def frames(self) -> torch.Tensor:
        return self.tensor[: self.used]


def _checked(samples: torch.Tensor, grid: LatentGrid) -> torch.Tensor:
    """Returns the latent as [B, C, F, H, W] after checking that this VAE made it and that it holds numbers."""
    if samples.is_nested:
        samples = samples.unbind()[0]
    if samples.ndim == 4:  # a picture from a native node
        samples = samples.unsqueeze(2)
    if samples.shape[1] != grid.channels:
        file = VAE_FILES.get(samples.shape[1])
        raise WrongModelError(
            "This VAE did not make this latent",
            where="vae",
            found=f"a VAE of {grid.channels} channels",
            expected=f"{samples.shape[1]} channels",
            remedy=f"Load {with_address(file) if file else 'the VAE of the model that sampled it'}",
        )
    if not all(torch.isfinite(part).all() for part in samples.split(64, dim=2)):
        raise InputError(
            "The latent holds values that are not numbers",
            where="latent",
            found="NaN or infinity",
            remedy="Sample again without flags that choose an attention and with LoRA strengths of at most 1; "
            "load an fp16 file with Wan Load Diffusion Model, weight_dtype (advanced) bf16",
        )
    return samples


def _finite(chunks: Iterator[torch.Tensor], vae: Any) -> Iterator[torch.Tensor]:
    for chunk in chunks:
        check_vae(chunk, vae)
        yield chunk
