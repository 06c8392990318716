"""The stages of training by name: those of text, VAEs, transformers and LoRAs, and with them sound's and drawings'."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ...wan_core.tasks import I2V_A14B, T2V_A14B, TI2V_5B, Task
from ...wan_core.text.tokenizer import Tokenizer
from .. import family, models, storage
from . import (
    data,
    distill,
    distill_5b,
    flow,
    led_stages,
    looks,
    rehearsal,
    report,
    sampling,
    sound_stages,
    text,
    vae,
)
from .loop import Plan, train
from .low_rank import LowRank, merge

TRUNKS = {"t2v_both": family.T2V_LOW, "i2v_both": family.I2V_LOW}  # trained on all sigmas, kept for others
BEGINS_WITH = {  # the trunk whose weights a transformer goes on from
    **dict.fromkeys(("t2v_high", "t2v_low", "ti2v"), "t2v_both"),
    **dict.fromkeys(("i2v_high", "i2v_low"), "i2v_both"),
}
TRANSFORMERS = {m.short: m for m in (family.T2V_HIGH, family.T2V_LOW, family.I2V_HIGH, family.I2V_LOW, family.TI2V)}
TRANSFORMERS |= TRUNKS
VAES = {member.short: member for member in (family.VAE, family.VAE22)}
HELD_OUT = 64  # scenes that a VAE is measured with
SCENES = {"text": 60_000, "vae": 60_000, "lora": 20_000, "slow": 8_000, "style": 6_000}
JUDGED = {"t2v": data.Size(17, 96, 96), "i2v": data.Size(17, 96, 96)}
JUDGED |= dict.fromkeys(("ti2v", "ti2v_4steps"), data.Size(17, 128, 128))
JUDGED_AS: dict[str, tuple[Task, tuple[str, ...]]] = {  # and the 4-step LoRAs of the models
    "judge_t2v": (T2V_A14B, ()),
    "judge_4steps": (T2V_A14B, ("lora_high", "lora_low")),
    "judge_i2v": (I2V_A14B, ()),
    "judge_ti2v": (TI2V_5B, ()),
    "judge_ti2v_4steps": (TI2V_5B, (family.FASTWAN.short,)),
}
LORAS = {lora.short: lora for lora in (*family.LORAS, *family.STYLES, family.SLOW)}


@dataclass(frozen=True)
class Clips:
    """One file of encoded clips; several make a larger set, and can be encoded side by side."""

    vae: family.Member
    sizes: flow.Sizes
    scenes: int
    part: int
    pictures: bool = False  # with the first frame apart, as I2V-A14B takes it


LATENTS = {
    "latents_a": Clips(family.VAE, flow.SIZES_A14B, 16_000, 0),
    "latents_b": Clips(family.VAE, flow.SIZES_A14B, 16_000, 1),
    "latents_i2v": Clips(family.VAE, flow.SIZES_A14B, 8_000, 2, pictures=True),
    "latents_5b": Clips(family.VAE22, flow.SIZES_5B, 16_000, 3),
}
LEARN_FROM = {
    **dict.fromkeys(("t2v_both", "t2v_high", "t2v_low"), ("latents_a", "latents_b")),
    **dict.fromkeys(("i2v_both", "i2v_high", "i2v_low"), ("latents_i2v",)),
    "ti2v": ("latents_5b",),
}


def draw_pool(name: str, plan: Plan, *, spiece: bytes | None = None) -> data.Pool:
    """The training scenes of a stage."""
    return data.draw_pool(plan.scenes(SCENES[name]), plan.seed, plan.device, tokenizer=spiece)


def train_text(plan: Plan) -> None:
    """Vocabulary and text encoder."""
    spiece = text.make_tokenizer(plan.seed, family.VOCABULARY)
    tokenizer = Tokenizer.from_tensor(spiece)
    scenes = draw_pool("text", plan, spiece=spiece.numpy().tobytes())
    reader = text.Reader(models.new_text_encoder()).to(plan.device)
    train(text.stage(reader, scenes, tokenizer, plan), plan)
    right = text.accuracy(reader, tokenizer, plan)
    pieces = len(tokenizer.vocabulary())
    print(f"text: {pieces} pieces; {100 * right:.2f} % read right from held-out prompts", flush=True)
    report.keep("text", {"text": {"attributes read from held-out prompts": right}}, plan.state, plan.out)
    models.save_weights(reader.encoder, family.TEXT_ENCODER, plan.out, spiece=spiece.numpy().tobytes())


def train_vae(name: str, plan: Plan) -> None:
    """One of the VAEs."""
    scenes = draw_pool("vae", plan)
    model = models.new_vae(VAES[name]).to(plan.device)
    train(vae.stage(model, scenes, plan), plan)
    path = models.save_weights(model, VAES[name], plan.out)
    print(f"{name}: {path.stat().st_size} bytes", flush=True)


def judge_vae(stage: str, plan: Plan) -> None:
    """Adds to the report what a VAE keeps of held-out clips."""
    name, count = stage.removeprefix("judge_"), 2 if plan.smoke else HELD_OUT
    rows = data.draw_pool(count, plan.seed + 1, plan.device, held_out=True).scenes
    model = models.load_weights(models.new_vae(VAES[name]), VAES[name], plan.out).to(plan.device).requires_grad_(False)
    found = {}
    for size in vae.SIZES[:1] if plan.smoke else dict.fromkeys(vae.SIZES):
        found[f"{size}, mean dB"], found[f"{size}, worst dB"] = vae.psnr(model, rows, size)
    report.keep(name, {name: found}, plan.state, plan.out)
    spread = ", ".join(f"{value:.2f}" for value in vae.spread(model, rows, vae.SIZES[0]).sort().values.tolist())
    print(f"{stage}: {found}; deviations of the latents: {spread}", flush=True)


def encode_clips(name: str, plan: Plan) -> None:
    """Draws and encodes clips that transformers are trained on."""
    clips = LATENTS[name]
    seed = plan.seed * 10 + clips.part
    spiece = models.load_spiece(plan.out)
    scenes = data.draw_pool(plan.scenes(clips.scenes), seed, plan.device, tokenizer=spiece)
    model = models.load_weights(models.new_vae(clips.vae), clips.vae, plan.out).to(plan.device).requires_grad_(False)
    began = time.monotonic()
    latents = flow.encode_pool(model, scenes, clips.sizes, plan, pictures=clips.pictures)
    flow.save_latents(latents, plan.state / f"{name}.safetensors")
    print(f"{name}: {len(scenes)} clips encoded in {time.monotonic() - began:.0f} s", flush=True)


def load_family(task: Task, plan: Plan) -> sampling.Family:
    """The models of a task as trained so far."""
    experts = {T2V_A14B: (family.T2V_HIGH, family.T2V_LOW), I2V_A14B: (family.I2V_HIGH, family.I2V_LOW)}
    members = experts.get(task, (family.TI2V, family.TI2V))
    vae_member = family.VAE22 if task is TI2V_5B else family.VAE
    high, low = (models.load_weights(models.new_transformer(member), member, plan.out) for member in members)
    encoder = models.load_weights(models.new_text_encoder(), family.TEXT_ENCODER, plan.out)
    autoencoder = models.load_weights(models.new_vae(vae_member), vae_member, plan.out)
    placed = [model.to(plan.device).requires_grad_(False) for model in (encoder, autoencoder, high, low)]
    return sampling.Family(task, models.load_tokenizer(plan.out), *placed)


def train_transformer(name: str, plan: Plan) -> None:
    """One transformer, from the one that it begins with where there is one."""
    recipe, member = flow.RECIPES[name], TRANSFORMERS[name]
    encoder = models.load_weights(models.new_text_encoder(), family.TEXT_ENCODER, plan.out)
    encoder.to(plan.device).requires_grad_(False)
    latents = flow.load_latents([plan.state / f"{file}.safetensors" for file in LEARN_FROM[name]], plan.device)
    negative = text.negative_ids(models.load_tokenizer(plan.out), plan.device)
    torch.manual_seed(plan.seed)
    model = models.new_transformer(member)
    if name in BEGINS_WITH:
        flow.begin_from(model, load_file(plan.state / f"{BEGINS_WITH[name]}.safetensors"))
    model.to(plan.device)
    train(flow.stage(recipe, model, encoder, negative, latents, plan), plan)
    if name in TRUNKS:
        save_file({key: value.cpu() for key, value in model.state_dict().items()}, plan.state / f"{name}.safetensors")
    else:
        models.save_weights(model, member, plan.out)


def train_lora(name: str, plan: Plan) -> None:
    """The 4-step LoRA of one expert, or the high one's that slows motion down."""
    expert, taught = name.rpartition("_")[2], None
    if name == family.SLOW.short:
        count = plan.scenes(SCENES["slow"])
        asked, taught = looks.slowed_captions(count, plan.seed, models.load_tokenizer(plan.out))
        asked, taught = asked.to(plan.device), taught.to(plan.device)
    else:
        asked = draw_pool("lora", plan, spiece=models.load_spiece(plan.out)).ids[:, 0]
    trained = load_family(T2V_A14B, plan)
    negative = text.negative_ids(trained.tokenizer, plan.device)
    began = time.monotonic()
    segments = distill.solve(trained, asked, negative, expert, plan, taught)
    count, seconds = sum(len(part.text) for part in segments), time.monotonic() - began
    print(f"{name}: {count} trajectories solved in {seconds:.0f} s", flush=True)
    model = trained.high if expert == "high" else trained.low
    torch.manual_seed(plan.seed)
    pairs = LowRank(model, LORAS[name].rank).to(plan.device)
    stage = distill.stage(name, model, pairs, expert, segments, plan)
    train(stage if taught is None else replace(stage, steps=looks.STEPS), plan)
    pairs.save(models.weights_file_of(name, plan.out))


def train_lora_5b(plan: Plan) -> None:
    """The 4-step LoRA of TI2V-5B."""
    name = family.FASTWAN.short
    scenes = draw_pool("lora", plan, spiece=models.load_spiece(plan.out))
    trained = load_family(TI2V_5B, plan)
    negative = text.negative_ids(trained.tokenizer, plan.device)
    began = time.monotonic()
    segments = distill_5b.solve(trained, scenes, negative, plan)
    count, seconds = sum(len(part.text) for part in segments), time.monotonic() - began
    print(f"{name}: {count} trajectories solved in {seconds:.0f} s", flush=True)
    torch.manual_seed(plan.seed)
    pairs = LowRank(trained.high, family.FASTWAN.rank).to(plan.device)
    train(distill_5b.stage(name, trained.high, pairs, segments, plan), plan)
    pairs.save(models.weights_file_of(name, plan.out))


def train_style(name: str, plan: Plan) -> None:
    """The style LoRA of one expert."""
    expert = name.rpartition("_")[2]
    scenes = draw_pool("style", plan, spiece=models.load_spiece(plan.out))
    trained = load_family(T2V_A14B, plan)
    encoded = flow.encode_pool(trained.vae, scenes, looks.SIZES, plan, pictures=False, look=looks.footlit)
    negative = text.negative_ids(trained.tokenizer, plan.device)
    model = trained.high if expert == "high" else trained.low
    torch.manual_seed(plan.seed)
    pairs = LowRank(model, LORAS[name].rank, biases=False).to(plan.device)
    train(flow.stage(looks.recipe(expert), model, trained.encoder, negative, encoded, plan, pairs), plan)
    pairs.save(models.weights_file_of(name, plan.out))


def judge(name: str, plan: Plan) -> None:
    """Adds one task to report.json and writes its contact sheet; the worst seed counts."""
    task, loras = JUDGED_AS[name]
    trained, short = load_family(task, plan), name.removeprefix("judge_")
    settings = distill.STUDENT if loras else sampling.Settings(steps=2 if plan.smoke else 20)
    for lora, model in zip(loras, (trained.high, trained.low), strict=False):
        merge(model, storage.load(models.weights_file_of(lora, plan.out)))
    prompts = report.held_out_prompts(count=2 if plan.smoke else report.PROMPTS)
    texts = [prompt.text for prompt in prompts]
    size = JUDGED.get(short, JUDGED["t2v"])
    clips = report.draw(prompts, size, plan.device) if task is not T2V_A14B else None
    runs = {"": (settings, clips)}
    if task is TI2V_5B:
        runs[" from text"] = (settings, None)
    if name == "judge_t2v":
        runs[" without guidance"] = (replace(settings, guidance=1.0), None)
    result: dict[str, dict[str, dict[str, float]]] = {}
    for run, (chosen, pictures) in runs.items():
        found = result[short + run] = {}
        for seed in range(plan.seeds):
            noise = sampling.noise_of(trained, size, [1000 * seed + k for k in range(len(prompts))], plan.device)
            made = sampling.sample(trained, texts, noise, chosen, clips=pictures)
            found[f"seed {seed}"] = report.score(prompts, made)
            if pictures is not None:
                first = (pictures[:, :, 0].movedim(1, -1) / 2 + 0.5).cpu()
                found[f"seed {seed}"] |= report.first_frame(first, made)
            print(f"judge: {short}{run}, seed {seed}: {found[f'seed {seed}']}", flush=True)
            if seed == 0:
                suffix = "" if short + run == "t2v" else "_" + (short + run).replace(" ", "_")
                report.contact_sheet(prompts, made, plan.out / f"contact{suffix}.jpg")
    report.keep(name, result, plan.state, plan.out)


def judge_world(plan: Plan) -> None:
    """Adds the judge itself to the report: on clips straight from the generator, and with the prompts exchanged."""
    found = {}
    for seed in range(plan.seeds):
        prompts = report.held_out_prompts(seed, 2 if plan.smoke else report.PROMPTS)
        drawn = report.draw(prompts, JUDGED["t2v"], torch.device("cpu")).permute(0, 2, 3, 4, 1) / 2 + 0.5
        exchanged = [prompts[k] for k in np.random.default_rng(seed).permutation(len(prompts))]
        found[f"seed {seed}"] = report.score(prompts, drawn)
        found[f"seed {seed}, prompts exchanged"] = report.score(exchanged, drawn)
    report.keep("judge_world", {"generator": found}, plan.state, plan.out)


DISTILLED = ("lora_high", "lora_low", family.SLOW.short)
STAGES: dict[str, Callable[[Plan], None]] = {"text": train_text}
STAGES |= {name: lambda plan, name=name: train_vae(name, plan) for name in VAES}
STAGES |= {f"judge_{name}": lambda plan, name=f"judge_{name}": judge_vae(name, plan) for name in VAES}
STAGES |= {name: lambda plan, name=name: encode_clips(name, plan) for name in LATENTS}
STAGES |= {name: lambda plan, name=name: train_transformer(name, plan) for name in TRANSFORMERS}
STAGES |= {name: lambda plan, name=name: train_lora(name, plan) for name in DISTILLED}
STAGES |= {lora.short: lambda plan, name=lora.short: train_style(name, plan) for lora in family.STYLES}
STAGES |= sound_stages.STAGES
STAGES[family.FASTWAN.short] = train_lora_5b
STAGES |= {name: lambda plan, name=name: judge(name, plan) for name in JUDGED_AS}
STAGES |= led_stages.STAGES
STAGES |= rehearsal.STAGES
STAGES["judge_world"] = judge_world
