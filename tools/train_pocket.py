"""Trains Pocket Wan: python3 tools/train_pocket.py STAGE...

Stages, in order: `text` and `vae` (text encoder and VAE 2.1), `latents` (clips to train on, encoded), `high` and `low`
(the text-to-video experts), `lora_high` and `lora_low` (their 4-step LoRAs), `judge` (the report). Each reads what the
stages before it wrote and goes on from its own weights where there are some already; `text` and `vae`,
and the two of each pair, can run side by side. A stage that does not end within --minutes keeps its state in --state
and goes on from there when it is run again. --smoke runs a few steps of each on any machine.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from pack import import_pack

import_pack()
from wancore.pocket import family, models  # noqa: E402
from wancore.pocket.training import data, distill, flow, report, sampling, text, vae  # noqa: E402
from wancore.pocket.training.loop import Plan, train  # noqa: E402
from wancore.pocket.world import Sheet  # noqa: E402
from wancore.wan_core.text.tokenizer import Tokenizer  # noqa: E402
from wancore.wan_core.vae.wan21 import WanVAE21  # noqa: E402

EXPERTS = {"high": family.T2V_HIGH, "low": family.T2V_LOW}
SCENES = {"text": 60_000, "vae": 60_000, "latents": 56_000, "lora_high": 60_000, "lora_low": 60_000}
LATENTS = "latents.safetensors"  # beside the states of unfinished stages
JUDGED = data.Size(17, 96, 96)
SEEDS = (0, 1, 2)


def draw_pool(name: str, plan: Plan, *, spiece: bytes | None = None) -> data.Pool:
    """The training scenes of a stage."""
    return data.draw_pool(500 if plan.smoke else SCENES[name], plan.seed, plan.device, tokenizer=spiece)


def start(model: models.Model, member: family.Member, plan: Plan) -> models.Model:
    """The model on its device, with the weights of an earlier training where there are some."""
    if models.weights_file(member, plan.out).is_file():
        models.load_weights(model, member, plan.out)
    return model.to(plan.device)


def train_text(plan: Plan) -> None:
    """Vocabulary and text encoder."""
    spiece = text.make_tokenizer(plan.seed, family.VOCABULARY)
    tokenizer = Tokenizer.from_tensor(spiece)
    scenes = draw_pool("text", plan, spiece=spiece.numpy().tobytes())
    reader = text.Reader(models.new_text_encoder()).to(plan.device)
    if not train(text.stage(reader, scenes, tokenizer, plan), plan):
        return
    models.round_to_bfloat16(reader.encoder)
    right = text.accuracy(reader, tokenizer, plan)
    print(f"text: {tokenizer.vocabulary_size} pieces; {100 * right:.2f} % read right from held-out prompts", flush=True)
    models.save_weights(reader.encoder, family.TEXT_ENCODER, plan.out, extra={models.SPIECE: spiece})


def train_vae(plan: Plan) -> None:
    """VAE 2.1."""
    scenes = draw_pool("vae", plan)
    held_out = data.draw_pool(data.BLOCK, plan.seed + 1, plan.device, held_out=True).scenes
    model = start(models.new_vae(), family.VAE, plan)
    if not train(vae.stage(model, scenes, plan), plan):
        return
    vae.fit_statistics(model, scenes, plan)
    finish_vae(model, held_out, plan)


def train_decoder(plan: Plan) -> None:
    """VAE 2.1 once more, its latents kept as they are: for a decoder that goes on while the experts are trained."""
    scenes = draw_pool("vae", plan)
    held_out = data.draw_pool(data.BLOCK, plan.seed + 1, plan.device, held_out=True).scenes
    model = start(models.new_vae(), family.VAE, plan)
    model.encoder.requires_grad_(False)
    model.conv1.requires_grad_(False)
    if train(replace(vae.stage(model, scenes, plan), name="decoder"), plan):
        finish_vae(model, held_out, plan)


def finish_vae(model: WanVAE21, held_out: Sheet, plan: Plan) -> None:
    """Measures and saves VAE 2.1."""
    models.round_to_bfloat16(model)
    for size in vae.SIZES[:3]:
        rows = torch.arange(2 if plan.smoke else 64, device=plan.device)
        print(f"vae: {vae.psnr(model, held_out.rows(rows), size):.2f} dB on held-out clips, {size}", flush=True)
    models.save_weights(model, family.VAE, plan.out)


def load_family(plan: Plan) -> sampling.Family:
    """The text-to-video models as trained so far; experts that are not there yet are untrained."""
    high, low = (start(models.new_transformer(member), member, plan) for member in EXPERTS.values())
    encoder = models.load_weights(models.new_text_encoder(), family.TEXT_ENCODER, plan.out)
    autoencoder = models.load_weights(models.new_vae(), family.VAE, plan.out)
    placed = [model.to(plan.device).requires_grad_(False) for model in (encoder, autoencoder, high, low)]
    return sampling.Family(models.load_tokenizer(plan.out), *placed)


def encode_clips(plan: Plan) -> None:
    """Draws and encodes the clips that both experts are trained on."""
    scenes = draw_pool("latents", plan, spiece=models.load_spiece(plan.out))
    began = time.monotonic()
    latents = flow.encode_pool(load_family(plan).vae, scenes, plan)
    flow.save_latents(latents, plan.state / LATENTS)
    print(f"latents: {len(scenes)} clips encoded in {time.monotonic() - began:.0f} s", flush=True)


def train_expert(name: str, plan: Plan) -> None:
    """One expert of the text-to-video pair."""
    trained = load_family(plan)
    latents = flow.load_latents(plan.state / LATENTS, plan.device)
    torch.manual_seed(plan.seed)
    model = start(models.new_transformer(EXPERTS[name]), EXPERTS[name], plan)
    negative = text.negative_ids(trained.tokenizer, plan.device)
    if train(flow.stage(model, name, trained.encoder, negative, latents, plan), plan):
        models.save_weights(model, EXPERTS[name], plan.out)


def train_lora(name: str, plan: Plan) -> None:
    """The 4-step LoRA of one expert."""
    expert = name.removeprefix("lora_")
    scenes = draw_pool(name, plan, spiece=models.load_spiece(plan.out))
    trained = load_family(plan)
    negative = text.negative_ids(trained.tokenizer, plan.device)
    segments = distill.solve(trained, scenes, negative, expert, plan)
    print(f"{name}: {sum(len(part.text) for part in segments)} trajectories solved", flush=True)
    model = trained.high if expert == "high" else trained.low
    torch.manual_seed(plan.seed)
    pairs = distill.LowRank(model, family.LORAS[0].rank).to(plan.device)
    if train(distill.stage(model, pairs, expert, segments, plan), plan):
        pairs.save(plan.out / f"{name}.safetensors")


def judge(plan: Plan) -> None:
    """Writes report.json and contact.jpg; the worst seed counts."""
    prompts = report.held_out_prompts(count=2 if plan.smoke else report.PROMPTS)
    texts = [prompt.text for prompt in prompts]
    runs = {"20 steps": sampling.Settings(steps=2 if plan.smoke else 20)}
    if all((plan.out / f"lora_{name}.safetensors").is_file() for name in EXPERTS):
        runs["4-step LoRA"] = distill.STUDENT
    result: dict[str, dict[str, dict[str, float]]] = {}
    for run, settings in runs.items():
        trained = load_family(plan)
        if settings is distill.STUDENT:
            for name, model in (("high", trained.high), ("low", trained.low)):
                distill.merge(model, plan.out / f"lora_{name}.safetensors")
        result[run] = {}
        for seed in SEEDS:
            noise = sampling.noise_of(JUDGED, [1000 * seed + k for k in range(len(prompts))], plan.device)
            clips = sampling.sample(trained, texts, text.NEGATIVE, noise, settings)
            result[run][f"seed {seed}"] = report.score(prompts, clips)
            print(f"judge: {run}, seed {seed}: {result[run][f'seed {seed}']}", flush=True)
            if seed == 0:
                report.contact_sheet(prompts, clips, plan.out / f"contact{'' if run == '20 steps' else '_4_steps'}.jpg")
    (plan.out / "report.json").write_text(json.dumps(result, indent=1) + "\n")


STAGES = {"text": train_text, "vae": train_vae, "decoder": train_decoder, "latents": encode_clips, "judge": judge}
STAGES |= {name: lambda plan, name=name: train_expert(name, plan) for name in EXPERTS}
STAGES |= {f"lora_{name}": lambda plan, name=name: train_lora(f"lora_{name}", plan) for name in EXPERTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=STAGES, metavar="STAGE")
    parser.add_argument("--out", type=Path, default=models.WEIGHTS, help="folder of the trained weights")
    parser.add_argument("--state", type=Path, default=Path("train_pocket"), help="folder of unfinished stages")
    parser.add_argument("--minutes", type=float, default=8.5, help="stop a stage after so long")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=22)
    parser.add_argument("--fit", action="store_true", help="end within --minutes, with fewer steps if need be")
    parser.add_argument("--smoke", action="store_true", help="a few steps on small batches: does it run")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    deadline = time.monotonic() + 60 * args.minutes
    for stage in args.stages:
        torch.manual_seed(args.seed)
        STAGES[stage](Plan(args.out, args.state, torch.device(args.device), args.seed, deadline, args.fit, args.smoke))


if __name__ == "__main__":
    main()
