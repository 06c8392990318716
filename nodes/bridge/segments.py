"""Finished clips on the disk: found again by the next run that asks for the same, and joined without filling the RAM.

A clip's file is named by everything that it depends on, so that a run which was stopped, crashed or changed towards
its end takes the clips before that point from the disk. It holds what the sampler made, before anything is cut off or
corrected.
"""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

import folder_paths
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import Self

from ...wan_core.errors import OutputError
from ...wan_core.media.atomic import TEMP_FOLDER, USER_FOLDER, disk_errors, partial_file
from .clips import Job
from .identity import graph_digest, model_identity
from .kept_files import WRITE_ERRORS, make_room, mark_used
from .replay import digest
from .sampling import Plan, Run

BUDGET = 20 * 2**30  # bytes of all clips together, about 30 hours of 480p; those used longest ago go first

Results = tuple[Tensor, Tensor]  # LATENT samples and denoised estimate [B, C, T, H, W]


class Segments:
    """The clips of one run on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used: list[Path] = []  # of this run: they are not removed to make room

    def find(self, key: str | None) -> Results | None:
        """What was made for the key; None where nothing was, or its file is damaged."""
        if key is None:
            return None
        path = self._path(key)
        try:
            found = load_file(path)
            results = found["samples"], found.get("denoised", found["samples"])
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001  (whatever is wrong with it: it can be sampled again)
            logging.warning("Wan: %s cannot be read (%s); it is sampled again", path, error)
            return None
        mark_used(path)
        self.used.append(path)
        return results

    def keep(self, key: str | None, results: Results) -> None:
        """Writes a clip whole or not at all. A disk without room only costs the resume."""
        if key is None:
            return
        samples, denoised = results
        tensors = {"samples": samples} if torch.equal(samples, denoised) else {"samples": samples, "denoised": denoised}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        size = sum(tensor.nbytes for tensor in tensors.values())
        try:
            with partial_file(self.folder, key, USER_FOLDER) as partial:
                make_room(self.folder, size, BUDGET, keep=self.used)
                save_file(tensors, partial.path)
                partial.replace(self._path(key))
        except (*WRITE_ERRORS, OutputError) as error:
            logging.warning("Wan: a finished clip could not be kept: %s", error)
            return
        self.used.append(self._path(key))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


class Timeline:
    """Latents one after the other in a file, and then as one tensor that is read from it page by page as it is used.

    The file lies in ComfyUI's temp folder, latent frame by latent frame, until the block of a `with` ends.
    """

    def __init__(self) -> None:
        folder = Path(folder_paths.get_temp_directory())
        with disk_errors(folder, TEMP_FOLDER):
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix="wan_latents_", dir=folder)
        self.path = Path(name)
        self.file = os.fdopen(handle, "wb")
        self.frames = 0
        self.like = torch.empty(0)

    def append(self, samples: Tensor) -> None:
        """Adds [B, C, T, H, W] behind what is there."""
        frames = samples.detach().cpu().movedim(2, 0).contiguous()
        self.frames, self.like = self.frames + len(frames), frames[:0]
        with disk_errors(self.path.parent, TEMP_FOLDER):
            self.file.write(frames.flatten().view(torch.uint8).numpy().tobytes())

    def joined(self) -> Tensor:
        """Everything, [B, C, T, H, W]; what is written into it stays in memory. The file goes with it."""
        with disk_errors(self.path.parent, TEMP_FOLDER):
            self.file.close()
        shape = (self.frames, *self.like.shape[1:])
        size = torch.Size(shape).numel()
        tensor = torch.from_file(str(self.path), shared=False, size=size, dtype=self.like.dtype).view(shape)
        self._remove()
        return tensor.movedim(0, 2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # on a full disk, bytes that could not be written before cannot be now
            self.file.close()
        self._remove()

    def _remove(self) -> None:
        try:
            self.path.unlink(missing_ok=True)  # a mapped file lives on without its name
        except OSError:
            logging.debug("Wan: %s stays until ComfyUI starts again", self.path)  # Windows


def segments_folder() -> Path:
    """Where finished clips are kept; ComfyUI's temp folder is emptied at its start."""
    return Path(folder_paths.get_user_directory()) / "wancore" / "segments"


def clip_key(plan: Plan, run: Run, job: Job, graph: Any, node_id: str | None) -> str | None:
    """A number for everything that a clip depends on; None where that cannot be told."""
    models = {"high": plan.pair.high, "low": plan.pair.low}
    try:
        made_by = [
            [graph_digest(graph, node_id, name), model_identity(model)]
            for name, model in models.items()
            if model is not None
        ]
        start = [job.latent["samples"], job.latent.get("noise_mask"), job.latent.get("batch_index")]
        how = [plan.sigmas, plan.boundary, plan.segmented, list(astuple(plan.settings)), list(astuple(run))]
        return digest(made_by, start, how, job.positive, job.negative)
    except (TypeError, LookupError) as error:
        logging.info("Wan: finished clips of this run cannot be found again: %s", error)
        return None
