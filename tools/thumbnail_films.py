"""Films for the thumbnails of workflows/: clips that the miniature family makes, one function for each task.

Each takes the folder of the models and the prompts of a card. ComfyUI must be importable before this module is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import led
import numpy as np
from pocket_gguf import HIGH, LOW, TEXT_ENCODER, write_family
from studio import NODE, Studio, as_images
from wancore.nodes.bridge.latents import empty_latent, grid_of
from wancore.nodes.bridge.long_clips import PICTURE
from wancore.nodes.images import WanCoreImageToVideo
from wancore.nodes.long_video import WanCoreLongVideo
from wancore.pocket import drawings, family, world
from wancore.pocket.training.sound_report import held_out_parts, picture
from wancore.pocket.voice import RATE
from wancore.wan_core.geometry import CUSTOM
from wancore.wan_core.sampling.presets import Settings

FAST, OFFICIAL = Settings(), Settings(preset="official", steps=20)
SIZE, SIZE_5B, FRAMES = (96, 96), (128, 128), 17
Film = tuple[np.ndarray, tuple[tuple[int, int], ...]]  # clips [2, F, H, W, 3] in 0..1; (clip, frame) of given frames
FIRST = ((0, 0), (1, 0))


def open_pair(models: Path, high: family.Member, low: family.Member) -> Studio:
    return Studio.open(*(models / part.folder / part.name for part in (high, low, family.TEXT_ENCODER, family.VAE)))


def _fast_pair(models: Path) -> Studio:
    """Text to video with the 4-step LoRAs."""
    loras = {lora.base: models / "loras" / lora.name for lora in family.LORAS}
    studio = open_pair(models, family.T2V_HIGH, family.T2V_LOW)
    return studio.with_loras(loras[family.T2V_HIGH.name], loras[family.T2V_LOW.name])


def from_text(models: Path, prompts: tuple[str, ...]) -> Film:
    return _fast_pair(models).film(prompts, FAST, seed=3), ()


def from_gguf(models: Path, prompts: tuple[str, ...]) -> Film:
    write_family(models)
    files = (models / "diffusion_models" / HIGH, models / "diffusion_models" / LOW)
    vae = models / family.VAE.folder / family.VAE.name
    return Studio.open(*files, models / "text_encoders" / TEXT_ENCODER, vae).film(prompts, OFFICIAL, seed=5), ()


def pictures_from_text(models: Path, prompts: tuple[str, ...]) -> Film:
    """Single frames: one of each of eight prompts, laid out as two clips."""
    pictures = open_pair(models, family.T2V_HIGH, family.T2V_LOW).film(prompts, OFFICIAL, seed=3, frames=1)
    return pictures.reshape(2, -1, *pictures.shape[2:]), ()


def drawn(prompts: tuple[str, ...], size: tuple[int, int] = SIZE, travel: float = 0.25) -> np.ndarray:
    """Clips [2, F, H, W, 3] as the prompts tell them: of the thing that each names, on its way."""
    clips = []
    for prompt in prompts:
        words = prompt.lower().replace(",", "").split()
        named = {
            part: next(value for value in values if value in words)
            for part, values in (("shape", world.SHAPES), ("color", world.COLORS), ("direction", world.DIRECTIONS))
        }
        thing = world.Thing(**named, size="large", speed="slow", radius=0.24, middle=(0.5, 0.5), travel=travel)
        clips.append(world.clip(world.Scene((thing,), "beige", "fixed", "day"), FRAMES, *size))
    return np.stack(clips)


def first_pictures(prompts: tuple[str, ...], size: tuple[int, int] = SIZE) -> np.ndarray:
    """First pictures [2, H, W, 3] for the prompts."""
    return drawn(prompts, size)[:, 0]


def from_picture(models: Path, prompts: tuple[str, ...]) -> Film:
    studio = open_pair(models, family.I2V_HIGH, family.I2V_LOW)
    return studio.film(prompts, OFFICIAL, seed=7, pictures=first_pictures(prompts)), FIRST


def between_pictures(models: Path, prompts: tuple[str, ...]) -> Film:
    """From a first picture to a last one."""
    studio, ends = open_pair(models, family.I2V_HIGH, family.I2V_LOW), drawn(prompts, travel=0.4)[:, [0, -1]]

    def start(number: int, positive: Any, negative: Any) -> tuple[Any, Any, Any]:
        first, last = as_images(ends[number]).split(1)
        made = WanCoreImageToVideo.execute.__func__(
            NODE, positive, negative, studio.vae, CUSTOM, 0.0, FRAMES, 1, *SIZE, start_image=first, end_image=last
        )
        return made.result

    return studio.film_from(prompts, OFFICIAL, start, seed=1), FIRST


def led_thing(shape: str, color: str) -> tuple[world.Sheet, np.ndarray, tuple[np.ndarray, ...]]:
    """A thing, its places [1, F, 2] on a winding path, and the times, rows and columns of its clip."""
    thing = world.Thing(shape, color, "small", "right", "slow", 0.18, (0.5, 0.5), 0.0)
    turns = [np.array([pair], dtype=np.float32) for pair in ((0.5, 0.5), (0.2, 0.14), (0.5, 0.65), (0.0, 0.25))]
    axes = world.axes(17, 96, 96)
    return world.sheet([world.Scene((thing,), "beige", "fixed", "day")]), drawings.Paths(*turns).at(axes[0]), axes


def from_control(models: Path, prompts: tuple[str, ...]) -> Film:
    studio, (sheet, paths, axes) = open_pair(models, family.VACE_HIGH, family.VACE_LOW), led_thing("cross", "red")
    drawing = drawings.outline(sheet, paths, *axes[1:])
    return np.concatenate([drawing, studio.film_from(prompts, OFFICIAL, led.vace(studio, drawing), seed=2)]), ()


def from_pose(models: Path, prompts: tuple[str, ...]) -> Film:
    parts = family.ANIMATE, family.TEXT_ENCODER, family.VAE
    high, *rest = (models / part.folder / part.name for part in parts)
    studio, (sheet, paths, axes) = Studio.open(high, None, *rest), led_thing("triangle", "purple")
    picture = world.render(sheet, *axes)[:, 0]
    poses = drawings.pose(sheet.radius[:, 0], paths, *axes[1:])
    clips = studio.film_from(prompts, OFFICIAL, led.animate(studio, picture, poses), seed=2, batch=1)
    return np.concatenate([poses, np.concatenate([picture[:, None], clips[:, 1:]], axis=1)]), FIRST[1:]


def from_text_or_picture(models: Path, prompts: tuple[str, ...]) -> Film:
    parts = family.TI2V, family.TEXT_ENCODER, family.VAE22
    high, *rest = (models / part.folder / part.name for part in parts)
    pictures = first_pictures(prompts, SIZE_5B)
    return Studio.open(high, None, *rest).film(prompts, OFFICIAL, size=SIZE_5B, seed=3, pictures=pictures), FIRST


def from_sound(models: Path, prompts: tuple[str, ...]) -> Film:
    """Two things that open as loud as their sounds; their texts are those of the sounds."""
    parts = family.S2V, family.TEXT_ENCODER, family.VAE
    high, *rest = (models / part.folder / part.name for part in parts)
    ears = models / family.AUDIO_ENCODER.folder / family.AUDIO_ENCODER.name
    studio, clips = Studio.open(high, None, *rest), []
    for part in held_out_parts(5, 2):
        clip = studio.sing(part.text, picture(part), part.sound, RATE, ears, OFFICIAL, clip_frames=48, seed=1)
        clips.append(np.concatenate([picture(part)[None], clip[1:]]))
    return np.stack(clips), FIRST


def long_from_text(models: Path, prompts: tuple[str, ...]) -> Film:
    """Three segments; the text of a card has each segment's behind "---"."""
    studio = _fast_pair(models)

    def start(number: int, positive: Any, negative: Any) -> tuple[Any, Any, Any]:
        latent = empty_latent(grid_of(studio.vae), SIZE, FRAMES, 1)
        following = prompts[number].split("---", 1)[1]
        made = WanCoreLongVideo.execute.__func__(
            NODE, positive, negative, latent, studio.vae, following, 3, 4, "", 0.3, PICTURE, clip=studio.clip
        )
        return made.result

    return studio.film_from([prompt.split("---")[0] for prompt in prompts], FAST, start, seed=2, batch=1), ()
