"""The stages of train_pocket.py for the members that a drawing leads: VACE's pair and Animate."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from ...wan_core.conditioning import Conditioning
from ...wan_core.prompts import NEGATIVE
from ...wan_core.tasks import ANIMATE_14B, VACE_FUN_A14B
from ...wan_core.text.tokenizer import PAD
from ...wan_core.text.umt5 import UMT5Encoder
from ...wan_core.transformer import WanTransformer
from ...wan_core.vae.causal import CausalVAE
from .. import drawings, family, models
from ..captions import caption
from ..following import Led, Shown
from ..world import Scene, Sheet, sheet
from . import animate, data, flow, led, report, sampling, text, vace
from .loop import Plan, train
from .vae import latent_shape

SCENES = {"latents_vace": 8_000, "latents_animate": 8_000}
SIZE = data.Size(17, 96, 96)
VACE = {"high": family.VACE_HIGH, "low": family.VACE_LOW}
SAID = {"latents_vace": drawings.tell_led, "latents_animate": drawings.tell_little}
READS = {"latents_vace": vace.encode_batch, "latents_animate": animate.encode_batch}
SHOWN = ("depth", "pose")  # on the contact sheets
PLAIN = "The thing in the picture moves."


def encode_clips(name: str, plan: Plan) -> None:
    """Draws and encodes clips that a drawing leads."""
    began, seed = time.monotonic(), plan.seed * 10 + 5 + list(SCENES).index(name)
    pool = data.draw_pool(
        plan.scenes(SCENES[name]),
        seed,
        plan.device,
        tokenizer=models.load_spiece(plan.out),
        draw=drawings.draw_led,
        tell=SAID[name],
    )
    autoencoder = models.load_weights(models.new_vae(), family.VAE, plan.out).to(plan.device).requires_grad_(False)
    found = led.encode_pool(autoencoder, pool, led.SIZES, plan, seed, READS[name])
    led.save(found, plan.state / f"{name}.safetensors")
    print(f"{name}: {len(pool)} clips encoded in {time.monotonic() - began:.0f} s", flush=True)


def _texts(plan: Plan) -> tuple[UMT5Encoder, Tensor]:
    encoder = models.load_weights(models.new_text_encoder(), family.TEXT_ENCODER, plan.out)
    return encoder.to(plan.device).requires_grad_(False), text.negative_ids(
        models.load_tokenizer(plan.out), plan.device
    )


def train_vace(expert: str, plan: Plan) -> None:
    """VACE's blocks of one expert, beside that expert."""
    member, (encoder, negative) = VACE[expert], _texts(plan)
    found = led.load(plan.state / "latents_vace.safetensors", plan.device)
    torch.manual_seed(plan.seed)
    model = models.new_transformer(member)
    base = models.read_weights(family.of(member.base), plan.out)
    model.load_state_dict({name: value.float() for name, value in base.items()}, strict=False)
    vace.begin(model)
    model = model.to(plan.device)
    train(vace.stage(expert, model, encoder, negative, found, plan), plan)
    models.save_weights(model, member, plan.out)


def train_animate(plan: Plan) -> None:
    """Animate, whole."""
    encoder, negative = _texts(plan)
    found = led.load(plan.state / "latents_animate.safetensors", plan.device)
    torch.manual_seed(plan.seed)
    model = animate.new_model().to(plan.device)
    train(animate.stage(model, encoder, negative, found, plan), plan)
    models.save_weights(model, family.ANIMATE, plan.out)


def held_out_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Scenes of combinations of shape and colour that were never trained on, every one as often as the others."""
    rng = np.random.default_rng((seed, 65))
    wanted: list[tuple[int, int]] = []
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = drawings.draw_led(rng, True)
        pair = scene.things[0].triple[:2]
        wanted = wanted or [(s, c) for s in range(4) for c in range(6) if (s + c) % 4 == 3]
        if pair in wanted:
            wanted.remove(pair)
            scenes.append(scene)
    return scenes


@dataclass(frozen=True)
class Stage:
    """Held-out scenes about to be filmed: what is drawn, and the parts that all tasks share."""

    batch: led.Batch
    texts: list[str]
    told: Callable[[Sequence[str]], Tensor]  # texts -> contexts
    vae: CausalVAE
    seed: int
    plan: Plan

    @property
    def dtype(self) -> torch.dtype:
        """Of noisy latents."""
        return torch.bfloat16 if self.plan.device.type == "cuda" else torch.float32

    @property
    def settings(self) -> sampling.Settings:
        """The official ones, 20 steps."""
        return sampling.Settings(steps=2 if self.plan.smoke else 20)

    def noise(self, frames: int) -> Tensor:
        """One seed to a clip."""
        shape = latent_shape(16, replace(SIZE, frames=frames), 8)
        seeds = (1000 * self.seed + k for k in range(len(self.texts)))
        made = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(made).to(self.plan.device)

    def transformer(self, member: family.Member) -> WanTransformer:
        """A trained one."""
        model = models.load_weights(models.new_transformer(member), member, self.plan.out)
        return model.to(self.plan.device).requires_grad_(False)


Filmed = dict[str, tuple[np.ndarray, np.ndarray]]  # kind of drawing: clips, and drawings of the paths; [N, F, H, W, 3]


def drawn(scenes: Sequence[Scene], plan: Plan, seed: int) -> led.Batch:
    """Scenes on paths of that seed."""
    plain = sheet(scenes)
    placed = Sheet(*(torch.from_numpy(getattr(plain, field.name)).to(plan.device) for field in fields(Sheet)))
    (batch,) = led.batches(placed, SIZE, seed, pixels=10**9)
    return batch


def film_vace(stage: Stage) -> Filmed:
    """By a depth map, an outline, a box to be filled, and by the text alone."""
    experts = stage.transformer(family.VACE_HIGH), stage.transformer(family.VACE_LOW)
    told, blank = stage.told(stage.texts), stage.told([NEGATIVE]).expand(len(stage.texts), -1, -1)
    noise, paths = stage.noise(SIZE.frames), None
    made = {}
    for kind in vace.KINDS:
        _, control, mask = vace.controls(stage.batch, kind)
        paths = led.pictures(control) if paths is None else paths
        seen = vace.read(stage.vae, control, mask)
        read = torch.cat([seen["control"].to(stage.dtype), seen["mask"].to(stage.dtype)], dim=1)
        conditions = [lambda model, _x, c=c, read=read: vace.condition(model, c, read) for c in (told, blank)]
        latents = led.film(VACE_FUN_A14B, experts, noise, *conditions, stage.settings)
        made[kind] = led.developed(stage.vae, latents), paths
    return made


def film_animate(stage: Stage) -> Filmed:
    """By poses, and without them."""
    model, count = stage.transformer(family.ANIMATE), len(stage.texts)
    told = stage.told([PLAIN] * count)
    clips, reference, poses = animate.pictures(stage.batch)
    none = torch.zeros(count, dtype=torch.long, device=stage.plan.device)
    first = led.encoded(stage.vae, reference)
    known = animate.concat(stage.vae, first, clips, none).to(stage.dtype)
    noise, paths = stage.noise(SIZE.frames + 4), led.pictures(poses)
    made = {}
    for kind, video in (("pose", poses), ("no pose", -torch.ones_like(poses))):
        read = led.encoded(stage.vae, video).to(stage.dtype)

        def condition(model: WanTransformer, x: Tensor, read: Tensor = read) -> Conditioning:
            return animate.condition(model, x, told, known, read)

        latents = led.film(ANIMATE_14B, (model, model), noise, condition, condition, stage.settings)
        made[kind] = led.developed(stage.vae, latents[:, :, 1:]), paths
    return made


FILMS = {"judge_vace": film_vace, "judge_animate": film_animate}


@torch.no_grad()
def judge(name: str, plan: Plan) -> None:
    """Films held-out scenes with every kind of drawing, holds them against their paths and another's; adds a report."""
    scenes, short = held_out_scenes(2 if plan.smoke else report.PROMPTS), name.removeprefix("judge_")
    rng = np.random.default_rng(66)
    texts = [caption(s, rng, held_out=True, complete=True, unsaid=drawings.UNSAID).text for s in scenes]
    autoencoder = models.load_weights(models.new_vae(), family.VAE, plan.out).to(plan.device)
    encoder, tokenizer = _texts(plan)[0], models.load_tokenizer(plan.out)

    def told(words: Sequence[str]) -> Tensor:
        rows = [tokenizer.encode(one) for one in words]
        longest = max(map(len, rows))
        return flow.embed(encoder, torch.tensor([row + [PAD] * (longest - len(row)) for row in rows]).to(plan.device))

    found: dict[str, dict[str, dict[str, float]]] = {}
    for seed in range(plan.seeds):
        stage = Stage(drawn(scenes, plan, 7000 + seed), texts, told, autoencoder, seed, plan)
        for kind, (clips, paths) in FILMS[name](stage).items():
            leds = [Led.by(one, scene) for one, scene in zip(paths, scenes, strict=True)]
            others = [replace(one, path=other.path) for one, other in zip(leds, leds[-1:] + leds[:-1], strict=True)]
            shown = [Shown.by(clip) for clip in clips]
            for against, asked in (("", leds), (", path of another", others)):
                scores = led.share_of([one.obeyed(clip) for one, clip in zip(asked, shown, strict=True)])
                found.setdefault(f"{short}, {kind}{against}", {})[f"seed {seed}"] = scores
                print(f"{name}: {kind}{against}, seed {seed}: {scores}", flush=True)
            if seed == 0 and kind in SHOWN:
                pairs = np.stack([row for pair in zip(paths, clips, strict=True) for row in pair])
                labels = [report.Prompt(t, s) for t, s in zip(texts, scenes, strict=True) for _ in (0, 1)]
                report.contact_sheet(labels, torch.from_numpy(pairs), plan.out / f"contact_{short}.jpg")
    report.keep(name, found, plan.state, plan.out)


STAGES: dict[str, Callable[[Plan], None]] = {
    **{name: lambda plan, name=name: encode_clips(name, plan) for name in SCENES},
    **{f"vace_{expert}": lambda plan, expert=expert: train_vace(expert, plan) for expert in VACE},
    "animate": train_animate,
    **{name: lambda plan, name=name: judge(name, plan) for name in FILMS},
}
