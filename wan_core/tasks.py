"""The tasks of the Wan family and their official defaults, one row each.

Source of every number: Wan-Video/Wan2.2 wan/configs at 42bf4cf (wan_t2v_A14B.py, wan_i2v_A14B.py, wan_ti2v_5B.py).
Guidance is the classifier-free guidance scale of each expert; one number for both where there is one expert.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

AREA_480P, AREA_720P = 832 * 480, 1280 * 720  # pixels; what the models were trained on


@dataclass(frozen=True)
class Task:
    """One row: what the official code samples with when nothing else is asked for."""

    id: str
    title: str
    steps: int
    shift: float
    guidance_high: float
    guidance_low: float
    boundary: float | None  # sigma at which the high expert hands over to the low one; None: one expert
    frame_rate: int  # frames per second
    frames: int  # official clip length, 4n+1
    latent_channels: int  # 16: VAE 2.1, 48: VAE 2.2
    size_multiple: int  # pixels; width and height are multiples of it
    shift_480p: float | None = None  # the shift of clips nearer to 480p than to 720p; None: one for every size

    def at(self, width: int, height: int) -> Task:
        """The row for a clip of width x height pixels."""
        if self.shift_480p is None or width * height > (AREA_480P * AREA_720P) ** 0.5:
            return self
        return replace(self, shift=self.shift_480p)


T2V_A14B = Task("t2v-A14B", "Wan 2.2 T2V-A14B", 40, 12.0, 4.0, 3.0, 0.875, 16, 81, 16, 16)
I2V_A14B = Task("i2v-A14B", "Wan 2.2 I2V-A14B", 40, 5.0, 3.5, 3.5, 0.900, 16, 81, 16, 16)
# wan_s2v_14B.py: 80 frames in a clip, as many clips as the sound needs
S2V_14B = Task("s2v-14B", "Wan 2.2 S2V-14B", 40, 3.0, 4.5, 4.5, None, 16, 80, 16, 64)
# wan_animate_14B.py; guidance 1 is none at all, and the face of the unconditional branch is empty
ANIMATE_14B = Task("animate-14B", "Wan 2.2 Animate-14B", 20, 5.0, 1.0, 1.0, None, 30, 77, 16, 16)
TI2V_5B = Task("ti2v-5B", "Wan 2.2 TI2V-5B", 50, 5.0, 5.0, 5.0, None, 24, 121, 48, 32)
# Wan-Video/Wan2.1 generate.py at 9737cba; the tensors are those of a T2V-A14B expert
T2V_21 = Task("t2v-2.1", "Wan 2.1 T2V-14B", 50, 5.0, 5.0, 5.0, None, 16, 81, 16, 16)
# Wan-Video/Wan2.1 README: shift 8 to 12 and guidance 6 for the 1.3B model
T2V_1_3B = Task("t2v-1.3B", "Wan 2.1 T2V-1.3B", 50, 8.0, 6.0, 6.0, None, 16, 81, 16, 16)
# Wan-Video/Wan2.1 generate.py: shift 3 for 832*480 and 480*832, else 5
I2V_21 = Task("i2v-2.1", "Wan 2.1 I2V-14B", 40, 5.0, 5.0, 5.0, None, 16, 81, 16, 16, shift_480p=3.0)
# aigc-apps/VideoX-Fun examples/wan2.2_fun and wan2.2_vace_fun, config/wan2.2 at 804a425; the same for control, camera
# and inpainting. The 5B's scripts take 50 steps but one (control without a reference picture), which takes 40.
FUN_A14B = Task("fun-A14B", "Wan 2.2 Fun-A14B", 50, 5.0, 6.0, 6.0, 0.900, 16, 81, 16, 16)
FUN_5B = Task("fun-5B", "Wan 2.2 Fun-5B", 50, 5.0, 6.0, 6.0, None, 24, 121, 48, 32)
VACE_FUN_A14B = Task("vace-fun-A14B", "Wan 2.2 VACE-Fun-A14B", 50, 12.0, 5.0, 5.0, 0.875, 16, 81, 16, 16)
# VideoX-Fun examples/wan2.1_fun at 804a425
FUN_21 = Task("fun-2.1", "Wan 2.1 Fun", 50, 3.0, 6.0, 6.0, None, 16, 81, 16, 16)
FLF2V_21 = Task("flf2v-2.1", "Wan 2.1 FLF2V-14B", 50, 16.0, 5.0, 5.0, None, 16, 81, 16, 16)
VACE_21 = Task("vace-2.1", "Wan 2.1 VACE", 50, 16.0, 5.0, 5.0, None, 16, 81, 16, 16)

FUN_TASKS = (FUN_A14B, FUN_5B, FUN_21, VACE_FUN_A14B, VACE_21)
OWN_TASKS = (T2V_A14B, I2V_A14B, TI2V_5B, T2V_21, T2V_1_3B, I2V_21, FLF2V_21, S2V_14B, ANIMATE_14B)
TASKS = {task.id: task for task in (*OWN_TASKS, *FUN_TASKS)}
