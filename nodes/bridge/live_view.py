"""The live view: the whole clip as an animated PNG where ComfyUI's own preview would show its first frame.

Which previewer is used, and whether at all, is ComfyUI's setting ("Live preview method"); what is shown goes through
its progress bar, as every preview does. The server's thread encodes it, not the one that samples.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Hashable, Iterator
from functools import cache
from typing import IO, Any

import comfy.model_management
import comfy.utils
import latent_preview
import torch
import torch.nn.functional as F
from comfy.taesd.taehv import apply_model_with_memblocks
from PIL import Image
from torch import Tensor

from .progress import ONLY, Part
from .tiny_vae import LATENT_STRIDE, Frames, Spread

LONGEST_SIDE = 320  # pixels of a moving preview: 21 frames are encoded in 0.1 s
MOST_FRAMES = 41
NATIVE_PREVIEWERS = (latent_preview.Latent2RGBPreviewer, latent_preview.TAESDPreviewerImpl)


class Animation:
    """An animated PNG in the place of the PIL image that ComfyUI's preview channel takes."""

    mode = "RGB"

    def __init__(self, frames: Frames, seconds: float) -> None:
        """The frames are shown in a loop of `seconds`."""
        self.frames, self.seconds = frames, seconds
        rows, columns = frames[0].shape[:2]
        scale = largest_side() / max(rows, columns)
        self.size = (max(1, round(columns * scale)), max(1, round(rows * scale)))

    def save(self, file: IO[bytes], format: str = "PNG", **options: Any) -> None:
        """Writes the animation; called by ComfyUI's server, with the options for a still image."""
        first, *rest = self.images()
        duration = 1000 * self.seconds / len(self.frames)
        first.save(file, "PNG", save_all=True, append_images=rest, duration=duration, loop=0, compress_level=1)

    def images(self) -> Iterator[Image.Image]:
        """The frames, one by one, at the size that is shown."""
        for frame in self.frames:
            yield Image.fromarray(frame.numpy()).resize(self.size, Image.Resampling.BILINEAR)


def largest_side() -> int:
    """Of a moving preview, in pixels; the user's --preview-size where that is smaller."""
    return min(LONGEST_SIDE, latent_preview.MAX_PREVIEW_RESOLUTION)


class Previews:
    """The pictures of one run."""

    def __init__(self, model: Any, frame_rate: float, latent: Tensor) -> None:
        """`latent` has the shape of what is sampled."""
        layout = model.model.latent_format
        self.previewer = latent_preview.get_previewer(model.load_device, layout)
        self.frame_rate = frame_rate
        self.factors = factors_beside(self.previewer, layout) if is_clip(latent) else None
        self.spread: Spread | None = None
        if self.factors is not None:
            tiny = self.previewer.taesd
            self.spread = Spread(lambda part: small(decoded(tiny, part)), MOST_FRAMES, kind_of(tiny, latent))
        if isinstance(self.previewer, NATIVE_PREVIEWERS):  # those of other packs may show what they are given
            self._rehearse(torch.zeros_like(latent[:1], device=model.load_device))
        self.since = time.monotonic()  # when the step began

    def _rehearse(self, blank: Tensor) -> None:
        """Makes the pictures of a blank latent: the first ones load and compile, for longer than a step may wait."""
        if self.spread is not None:
            try:
                self.spread.measure(blank[:, :, :1])
            except comfy.model_management.OOM_EXCEPTION:
                self._go_without_vae()
        kind, _, _ = preview_of(self.factors or self.previewer, blank, self.frame_rate)
        load_encoder(kind)

    def _go_without_vae(self) -> None:
        """For the rest of a run that has no memory to spare."""
        self.spread, self.previewer = None, self.factors

    def of(self, x0: Tensor) -> tuple[str, Any, int | None] | None:
        """The picture of one step; None where the user wants none."""
        if self.previewer is None:
            return None
        if self.spread is None:
            return preview_of(self.previewer, x0, self.frame_rate)
        if x0.device.type == "cuda":
            torch.cuda.synchronize(x0.device)  # what is measured is the picture, not the step before it
        try:
            frames = self.spread.of(x0[:1], time.monotonic() - self.since, self._by_factors)
        except comfy.model_management.OOM_EXCEPTION:
            self._go_without_vae()
            return self.of(x0)
        self.since = time.monotonic()
        return "PNG", Animation(frames, duration_of(x0, self.frame_rate)), None

    def _by_factors(self, x0: Tensor) -> Frames:
        return small(frames_of(self.factors, x0))


def prepare_callback(
    model: Any, latent: Tensor, x0_output: dict[str, Tensor], frame_rate: float, part: Part = ONLY
) -> Callable[[int, Tensor, Tensor, int], None]:
    """As latent_preview.prepare_callback (bar, preview, interrupt), with the clip moving at `frame_rate`.

    `latent` has the shape of what is sampled. The bar is that of all parts.
    """
    previews = Previews(model, frame_rate, latent)
    bar = comfy.utils.ProgressBar(part.count)

    def callback(step: int, x0: Tensor, x: Tensor, total_steps: int) -> None:
        x0_output["x0"] = x0
        bar.update_absolute(part.done(step + 1, total_steps), part.total(total_steps), previews.of(x0))

    return callback


def preview_of(previewer: Any, x0: Tensor, frame_rate: float) -> tuple[str, Any, int | None]:
    """What the preview channel takes: (format, image, largest side), of the first clip of x0 [B, C, F, H, W]."""
    if not is_clip(x0) or not moves(previewer):
        return previewer.decode_latent_to_preview_image("JPEG", x0)
    frames = frames_of(previewer, x0[:1])
    return "PNG", Animation(small(frames[:: -(-len(frames) // MOST_FRAMES)]), duration_of(x0, frame_rate)), None


@cache
def load_encoder(kind: str) -> None:
    """What PIL imports when it first writes this kind: in the server's thread it would hold up the sampling one."""
    Image.new("RGB", (1, 1)).save(io.BytesIO(), kind)


def is_clip(x0: Tensor) -> bool:
    """Whether these latents are of more than a still picture."""
    return x0.ndim == 5 and x0.shape[2] > 1


def duration_of(x0: Tensor, frame_rate: float) -> float:
    """Seconds of the clip of latents [B, C, F, H, W]."""
    return (LATENT_STRIDE * (x0.shape[2] - 1) + 1) / frame_rate


def moves(previewer: Any) -> bool:
    """Whether `frames_of` knows how the previewer makes its pictures."""
    factors = isinstance(previewer, latent_preview.Latent2RGBPreviewer)
    return factors and previewer.latent_rgb_factors_reshape is None


def factors_beside(previewer: Any, layout: Any) -> Any | None:
    """The factors that show what a tiny VAE has not decoded yet; None for other previewers."""
    if not isinstance(previewer, latent_preview.TAEHVPreviewerImpl) or layout.latent_rgb_factors is None:
        return None
    parts = layout.latent_rgb_factors, layout.latent_rgb_factors_bias, layout.latent_rgb_factors_reshape
    factors = latent_preview.Latent2RGBPreviewer(*parts)
    return factors if moves(factors) else None


def frames_of(previewer: Any, x0: Tensor) -> Tensor:
    """x0 [1, C, F, H, W] -> a picture of each latent frame by the factors, [F, H, W, 3] in 0..1."""
    factors, bias = previewer.latent_rgb_factors, previewer.latent_rgb_factors_bias
    colours = F.linear(x0[0].movedim(0, -1), factors.to(x0), None if bias is None else bias.to(x0))
    return (colours + 1) / 2


def decoded(vae: Any, latent: Tensor) -> Tensor:
    """A tiny VAE's frames [F, H, W, 3] in 0..1 of latent [1, C, f, H, W], where it works.

    As its `decode`, which takes each to the CPU in full size: that costs ten times as much.
    """
    memory = vae.memory_used_decode(latent.shape, vae.vae_dtype)
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=memory)
    tiny = vae.first_stage_model
    values = tiny.process_in(latent.to(vae.device, vae.vae_dtype)).movedim(2, 1)
    frames = apply_model_with_memblocks(
        tiny.decoder, values, False, False, output_device=vae.device, patch_size=tiny.patch_size, decode=True
    )
    return vae.process_output(frames[0, tiny.frames_to_trim :].movedim(1, -1))


def kind_of(vae: Any, latent: Tensor) -> Hashable:
    """All that decides what a tiny VAE's frames of latents [B, C, F, H, W] cost; its layers stand for its file."""
    size = latent.shape[1], *latent.shape[3:], largest_side()
    return repr(vae.first_stage_model), str(vae.device), vae.vae_dtype, size


def small(frames: Tensor) -> Frames:
    """[F, H, W, 3] in 0..1 -> as many pictures, not larger than what is shown, uint8 on the CPU."""
    rows, columns = frames.shape[1:3]
    scale = largest_side() / max(rows, columns)
    if scale < 1:
        size = (max(1, round(rows * scale)), max(1, round(columns * scale)))
        frames = F.interpolate(frames.movedim(-1, 1).float(), size=size, mode="area").movedim(1, -1)
    return list(frames.clamp(0, 1).mul(255).to(torch.uint8).contiguous().cpu())
