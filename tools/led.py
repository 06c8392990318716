"""Starts for Studio.film_from of the tasks that a drawing leads, by the nodes that users take."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from studio import NODE, Start, Studio, as_images
from wancore.nodes.animate import WanCoreAnimateToVideo
from wancore.nodes.vace import WanCoreVaceToVideo
from wancore.wan_core.animation import CLIP_FRAMES, OVERLAP
from wancore.wan_core.geometry import CUSTOM


def vace(studio: Studio, drawings: np.ndarray | None, frames: int = 17, masks: np.ndarray | None = None) -> Start:
    """Wan VACE to Video with control videos [N, F, H, W, 3] in 0..1 and masks [N, F, H, W], or with neither."""

    def start(number: int, positive: Any, negative: Any) -> tuple[Any, Any, Any]:
        video = None if drawings is None else as_images(drawings[number])
        holes = None if masks is None else torch.from_numpy(masks[number]).float()
        sizes = (96, 96) if video is None else (video.shape[2], video.shape[1])
        made = WanCoreVaceToVideo.execute.__func__(
            NODE, positive, negative, studio.vae, 1.0, CUSTOM, 0.0, frames, 1, *sizes, video, holes
        )
        return made.result[:3]

    return start


def animate(studio: Studio, pictures: np.ndarray, poses: np.ndarray, **more: Any) -> Start:
    """Wan Animate to Video with reference pictures [N, H, W, 3] and poses [N, F, H, W, 3] in 0..1; film one at once."""

    def start(number: int, positive: Any, negative: Any) -> tuple[Any, Any, Any]:
        video = as_images(poses[number])
        made = WanCoreAnimateToVideo.execute.__func__(
            NODE,
            positive,
            negative,
            studio.vae,
            as_images(pictures[number : number + 1]),
            video,
            CUSTOM,
            0.0,
            CLIP_FRAMES,
            OVERLAP,
            video.shape[2],
            video.shape[1],
            **{name: value[number] for name, value in more.items()},
        )
        return made.result

    return start
