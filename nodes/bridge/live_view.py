"""The live view: the whole clip as an animated PNG where ComfyUI's own preview would show its first frame.

Which previewer is used, and whether at all, is ComfyUI's setting ("Live preview method"); what is shown goes through
its progress bar, as every preview does. The server's thread encodes it, not the one that samples. The tiny VAE takes a
hundredth of the run at most: where it is too slow for a picture of every step, the others are made by the factors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import IO, Any

import comfy.utils
import latent_preview
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .progress import ONLY, Part

LONGEST_SIDE = 320  # pixels of a moving preview: 21 frames are encoded in 0.1 s
MOST_FRAMES = 41
LATENT_STRIDE = 4  # video frames per latent frame
SHARE = 0.01  # of a run's time, for the tiny VAE


class Animation:
    """An animated PNG in the place of the PIL image that ComfyUI's preview channel takes."""

    mode = "RGB"

    def __init__(self, frames: Tensor, seconds: float) -> None:
        """frames [F, H, W, 3] uint8 on the CPU, shown in a loop of `seconds`."""
        self.frames, self.seconds = frames, seconds
        rows, columns = frames.shape[1:3]
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


class Allowance:
    """The time that costly pictures may take: a share of the run's. The first one shows what one costs."""

    def __init__(self) -> None:
        self.spent = self.last = 0.0  # seconds

    def allows(self, elapsed: float) -> bool:
        """Whether there is time for one more, `elapsed` seconds after the run's start."""
        return self.spent + self.last <= SHARE * elapsed or not self.spent

    def took(self, seconds: float) -> None:
        self.last = seconds
        self.spent += seconds


class Previews:
    """The pictures of one run."""

    def __init__(self, model: Any, frame_rate: float) -> None:
        layout = model.model.latent_format
        self.previewer = latent_preview.get_previewer(model.load_device, layout)
        self.quick, self.frame_rate = self.previewer, frame_rate
        self.allowance, self.started = Allowance(), time.monotonic()
        if isinstance(self.previewer, latent_preview.TAEHVPreviewerImpl) and layout.latent_rgb_factors is not None:
            factors = layout.latent_rgb_factors, layout.latent_rgb_factors_bias, layout.latent_rgb_factors_reshape
            self.quick = latent_preview.Latent2RGBPreviewer(*factors)

    def of(self, x0: Tensor) -> tuple[str, Any, int | None] | None:
        """The picture of one step; None where the user wants none."""
        if self.previewer is None:
            return None
        if self.quick is self.previewer:
            return preview_of(self.previewer, x0, self.frame_rate)
        if x0.device.type == "cuda":
            torch.cuda.synchronize(x0.device)  # what is measured is the picture, not the step before it
        start = time.monotonic()
        if not self.allowance.allows(start - self.started):
            return preview_of(self.quick, x0, self.frame_rate)
        image = preview_of(self.previewer, x0, self.frame_rate)
        self.allowance.took(time.monotonic() - start)
        return image


def prepare_callback(
    model: Any, x0_output: dict[str, Tensor], frame_rate: float, part: Part = ONLY
) -> Callable[[int, Tensor, Tensor, int], None]:
    """As latent_preview.prepare_callback (bar, preview, interrupt), with the clip moving at `frame_rate`.

    The bar is that of all parts.
    """
    previews = Previews(model, frame_rate)
    bar = comfy.utils.ProgressBar(part.count)

    def callback(step: int, x0: Tensor, x: Tensor, total_steps: int) -> None:
        x0_output["x0"] = x0
        bar.update_absolute(part.done(step + 1, total_steps), part.total(total_steps), previews.of(x0))

    return callback


def preview_of(previewer: Any, x0: Tensor, frame_rate: float) -> tuple[str, Any, int | None]:
    """What the preview channel takes: (format, image, largest side), of the first clip of x0 [B, C, F, H, W]."""
    frames = frames_of(previewer, x0[:1]) if x0.ndim == 5 and x0.shape[2] > 1 else None
    if frames is None:
        return previewer.decode_latent_to_preview_image("JPEG", x0)
    seconds = (LATENT_STRIDE * (x0.shape[2] - 1) + 1) / frame_rate
    return "PNG", Animation(_small(frames), seconds), None


def frames_of(previewer: Any, x0: Tensor) -> Tensor | None:
    """x0 [1, C, F, H, W] -> every frame [F', H', W', 3] in 0..1; None where the previewer knows still images only."""
    if isinstance(previewer, latent_preview.TAEHVPreviewerImpl):
        return previewer.taesd.decode(x0)[0]
    if isinstance(previewer, latent_preview.Latent2RGBPreviewer) and previewer.latent_rgb_factors_reshape is None:
        factors, bias = previewer.latent_rgb_factors, previewer.latent_rgb_factors_bias
        colours = F.linear(x0[0].movedim(0, -1), factors.to(x0), None if bias is None else bias.to(x0))
        return (colours + 1) / 2
    return None


def _small(frames: Tensor) -> Tensor:
    """[F, H, W, 3] in 0..1 -> at most MOST_FRAMES, not larger than what is shown, uint8 on the CPU."""
    frames = frames[:: -(-len(frames) // MOST_FRAMES)]
    rows, columns = frames.shape[1:3]
    scale = largest_side() / max(rows, columns)
    if scale < 1:
        size = (max(1, round(rows * scale)), max(1, round(columns * scale)))
        frames = F.interpolate(frames.movedim(-1, 1).float(), size=size, mode="area").movedim(1, -1)
    return frames.clamp(0, 1).mul(255).to(torch.uint8).contiguous().cpu()
