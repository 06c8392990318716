"""The stages that make S2V: its audio encoder, its clips, its transformer, its part of the report."""

from __future__ import annotations

import time

import torch

from ...wan_core.prompts import NEGATIVE_S2V
from ...wan_core.tasks import S2V_14B
from .. import family, models
from . import hearing, sampling, sound, sound_clips, sound_model, sound_report
from .loop import Plan, train
from .report import PROMPTS, keep

VOICES, SCENES = 6_000, 8_000


def train_voice(plan: Plan) -> None:
    """The audio encoder."""
    voices = sound_clips.draw_voices(plan.scenes(VOICES), plan.seed, plan.device)
    held_out = sound_clips.draw_voices(plan.scenes(64), plan.seed + 1, plan.device, held_out=True)
    ears = hearing.Ears().to(plan.device)
    listener = hearing.Listener(ears).to(plan.device)
    train(hearing.stage(listener, voices, plan), plan)
    models.round_to_bfloat16(ears)
    loud, vowel = hearing.accuracy(listener, held_out, plan)
    print(f"voice: loudness of held-out voices at a correlation of {loud:.4f}, {100 * vowel:.1f} % of the vowels")
    models.save_weights(ears, family.AUDIO_ENCODER, plan.out)


def load_ears(plan: Plan) -> hearing.Ears:
    """The audio encoder as trained so far."""
    return models.load_weights(hearing.Ears(), family.AUDIO_ENCODER, plan.out).to(plan.device).requires_grad_(False)


def encode_speakers(plan: Plan) -> None:
    """Draws and encodes clips with sound."""
    scenes = sound_clips.draw_speakers(
        plan.scenes(SCENES), plan.seed * 10 + 4, plan.device, models.load_spiece(plan.out)
    )
    model = models.load_weights(models.new_vae(), family.VAE, plan.out).to(plan.device).requires_grad_(False)
    began = time.monotonic()
    latents = sound_clips.encode_speakers(model, load_ears(plan), scenes, plan)
    sound_clips.save_latents(latents, plan.state / "latents_s2v.safetensors")
    print(f"latents_s2v: {len(scenes)} clips encoded in {time.monotonic() - began:.0f} s", flush=True)


def train_s2v(plan: Plan) -> None:
    """The transformer that takes sound."""
    encoder = models.load_weights(models.new_text_encoder(), family.TEXT_ENCODER, plan.out)
    encoder.to(plan.device).requires_grad_(False)
    latents = sound_clips.load_latents(plan.state / "latents_s2v.safetensors", plan.device)
    negative = torch.tensor(models.load_tokenizer(plan.out).encode(NEGATIVE_S2V), device=plan.device)
    torch.manual_seed(plan.seed)
    model = sound_model.new_model().to(plan.device)
    train(sound.stage(model, encoder, negative, latents, plan), plan)
    models.save_weights(model, family.S2V, plan.out)


def judge_s2v(plan: Plan) -> None:
    """Adds S2V to report.json and writes its contact sheet."""
    parts = sound_report.held_out_parts(count=2 if plan.smoke else PROMPTS)
    model = models.load_weights(sound_model.new_model(), family.S2V, plan.out).to(plan.device).requires_grad_(False)
    encoder = models.load_weights(models.new_text_encoder(), family.TEXT_ENCODER, plan.out)
    autoencoder = models.load_weights(models.new_vae(), family.VAE, plan.out)
    placed = [part.to(plan.device).requires_grad_(False) for part in (encoder, autoencoder)]
    trained = sampling.Family(S2V_14B, models.load_tokenizer(plan.out), *placed, model, model)
    settings, found = sampling.Settings(steps=2 if plan.smoke else 20), {}
    for seed in range(plan.seeds):
        clips = sound_report.film(trained, load_ears(plan), parts, settings, seed)
        found[f"seed {seed}"] = sound_report.scored(parts, clips)
        print(f"judge: s2v, seed {seed}: {found[f'seed {seed}']}", flush=True)
        if seed == 0:
            sound_report.contact_sheet(parts, clips, plan.out / "contact_s2v.jpg")
    keep("judge_s2v", {"s2v": found}, plan.state, plan.out)


STAGES = {"voice": train_voice, "latents_s2v": encode_speakers, "s2v": train_s2v, "judge_s2v": judge_s2v}
