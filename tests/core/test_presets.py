"""What wishes and presets come to for a task."""

from __future__ import annotations

import pytest
from wancore.wan_core.errors import InputError
from wancore.wan_core.sampling.presets import PRESETS, Settings, resolve, summary
from wancore.wan_core.tasks import I2V_21, I2V_A14B, T2V_A14B, TI2V_5B


def test_auto_is_official_for_plain_models():
    chosen = resolve(Settings(), T2V_A14B, distilled=False, experts=2)
    assert chosen == Settings("official", 40, 4.0, 3.0, 12.0, 0.875, "official_unipc", "official")
    chosen = resolve(Settings(), I2V_A14B, distilled=False, experts=2)
    assert chosen == Settings("official", 40, 3.5, 3.5, 5.0, 0.9, "official_unipc", "official")
    chosen = resolve(Settings(), TI2V_5B, distilled=False)
    assert chosen == Settings("official", 50, 5.0, 5.0, 5.0, 0.0, "official_unipc", "official")


@pytest.mark.parametrize(
    ("size", "shift"), [((832, 480), 3.0), ((480, 832), 3.0), ((640, 640), 3.0), ((1280, 720), 5.0), ((960, 960), 5.0)]
)
def test_pictures_of_wan_21_take_a_smaller_shift_at_480p(size: tuple[int, int], shift: float):
    assert resolve(Settings(), I2V_21.at(*size), distilled=False).shift == shift
    assert I2V_A14B.at(*size) == I2V_A14B


def test_auto_is_fast_for_distilled_models():
    chosen = resolve(Settings(), T2V_A14B, distilled=True, experts=2)
    assert chosen == Settings("fast", 4, 1.0, 1.0, 5.0, 0.875, "euler", "simple")
    assert summary(chosen, 2, 2) == "4 steps: 2 high + 2 low, cfg 1, shift 5"
    chosen = resolve(Settings(), TI2V_5B, distilled=True)
    assert summary(chosen, 4, None) == "4 steps, cfg 1, shift 5"


def test_official_stays_possible_for_distilled_models():
    assert resolve(Settings("official"), T2V_A14B, distilled=True, experts=2).steps == 40


def test_fast_needs_a_distilled_model():
    with pytest.raises(InputError) as caught:
        resolve(Settings("fast"), T2V_A14B, distilled=False, experts=2)
    assert caught.value.where == "preset"


def test_any_wish_wins():
    wishes = Settings("fast", 6, 2.0, 1.5, 8.0, 0.9, "dpmpp_2m", "beta")
    assert resolve(wishes, T2V_A14B, distilled=True, experts=2) == wishes


@pytest.mark.parametrize(
    ("wishes", "schedule"),
    [
        (Settings("official", solver="euler"), "official"),
        (Settings("fast", solver="official_dpmpp"), "official"),
        (Settings("fast", solver="heun"), "simple"),
        (Settings("official", solver="official_unipc", schedule="beta"), "beta"),
    ],
)
def test_schedule_fits_the_solver(wishes, schedule):
    assert resolve(wishes, T2V_A14B, distilled=True, experts=2).schedule == schedule


def test_two_experts_need_a_boundary():
    with pytest.raises(InputError) as caught:
        resolve(Settings(), TI2V_5B, distilled=False, experts=2)
    assert caught.value.where == "low"
    assert resolve(Settings(boundary=0.5), TI2V_5B, distilled=False, experts=2).boundary == 0.5


def test_every_preset_names_itself_and_resolves():
    for name in PRESETS:
        assert resolve(Settings(name), T2V_A14B, distilled=True, experts=2).preset == name


def test_summary_of_one_model_and_of_two_scales():
    assert summary(resolve(Settings(steps=1), TI2V_5B, distilled=False), 1, None) == "1 step, cfg 5, shift 5"
    chosen = resolve(Settings(), T2V_A14B, distilled=False, experts=2)
    assert summary(chosen, 26, 14) == "40 steps: 26 high + 14 low, cfg 4 / 3, shift 12"


def test_motion_says_what_its_first_steps_are():
    chosen = resolve(Settings("motion"), I2V_A14B, distilled=True, experts=2)
    assert summary(chosen, 3, 3) == (
        "6 steps: 3 high + 3 low, cfg 3.5 in the first 2 without the distillation LoRA, then 1, shift 5"
    )
    single = resolve(Settings("motion"), TI2V_5B, distilled=True)
    assert summary(single, 6, None).endswith("cfg 5 in the first 2 without the distillation LoRA, then 1, shift 5")
    with pytest.raises(InputError):
        resolve(Settings("motion"), T2V_A14B, distilled=False, experts=2)
